"""LLaDA checkpoints as they lie on the hub, and iLLaDA's.

iLLaDA is the same code with grouped-query attention and one matrix for embeddings and head.
"""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from learn2pd import DualCache, NoStop, PrefixCache, ThresholdPolicy, decode
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.loading import load_model
from tests.models.helpers import (
    ILLADA_8B,
    LLADA_8B,
    MASK,
    YARN,
    edit_json,
    edit_weights,
    hub_shapes,
    refusal,
    write_checkpoint,
)


@pytest.fixture(scope="module")
def hub_folder(tokenizer, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("illada"), tokenizer)


@pytest.fixture(scope="module")
def illada(hub_folder):
    return load_model(str(hub_folder), device="cpu")


def logits(network) -> torch.Tensor:
    """The logits of some fixed tokens."""
    with torch.inference_mode():
        return network(torch.arange(10, 50)[None]).logits


@pytest.mark.parametrize("tied", [True, False])
def test_a_hub_checkpoint_loads_without_its_code_and_without_a_question(tokenizer, tmp_path, asked, tied):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # which users are not shown
        model = load_model(str(write_checkpoint(tmp_path, tokenizer, weight_tying=tied)), device="cpu")
    assert asked == []
    assert (model.spec.mask_id, model.spec.max_length, model.spec.shifted_logits) == (MASK, 8192, False)
    assert model.adapter.network.state_dict().keys() == load_file(tmp_path / "model.safetensors").keys()


def test_the_head_is_the_embedding(illada, hub_folder):
    network, embedding = (
        illada.adapter.network,
        load_file(hub_folder / "model.safetensors")["model.transformer.wte.weight"],
    )
    assert network.get_output_embeddings() is network.get_input_embeddings()
    with torch.inference_mode():
        hidden = network.hidden(torch.arange(10, 50)[None])
        assert logits(network).equal(functional.linear(hidden, embedding))


def test_a_saved_tied_model_has_no_head_and_gives_equal_logits(illada, tmp_path):
    illada.adapter.network.save_pretrained(tmp_path)
    illada.tokenizer.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == illada.adapter.network.state_dict().keys()
    assert "model.transformer.ff_out.weight" not in load_file(tmp_path / "model.safetensors")
    again = load_model(str(tmp_path), device="cpu")
    assert logits(again.adapter.network).equal(logits(illada.adapter.network))
    assert again.spec.fingerprint == illada.spec.fingerprint


def test_sharded_tied_weights_load(illada, folder):
    (folder / "model.safetensors").unlink()
    illada.adapter.network.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert logits(load_model(str(folder), device="cpu").adapter.network).equal(logits(illada.adapter.network))


def test_a_tied_model_loads_in_bfloat16(folder):
    network = load_model(str(folder), dtype="bfloat16", device="cpu").adapter.network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert network.get_output_embeddings() is network.get_input_embeddings()


@pytest.mark.parametrize("cache", [None, PrefixCache(), DualCache()])
def test_a_tied_model_decodes(illada, cache):
    result = decode(
        illada,
        ["2 + 3?", "7 pears and 4 pears"],
        policy=ThresholdPolicy(0.5),
        stop=NoStop(),
        cache=cache,
        gen_length=20,
    )
    assert (result.tokens != MASK).all()
    assert not result.failed.any()


def test_an_untied_model_without_a_head_is_refused(folder):
    edit_json(folder / "config.json", weight_tying=False)
    line = refusal(folder)
    assert "1 missing tensors" in line
    assert "model.transformer.ff_out.weight" in line


def test_a_tied_model_with_a_head_of_its_own_is_refused(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.transformer.ff_out.weight": torch.zeros(400, 32)}))
    line = refusal(folder)
    assert "1 unknown tensors" in line
    assert "model.transformer.ff_out.weight" in line


@pytest.mark.parametrize(
    ("config", "billions"),
    [(LLADA_8B, 8.02), (LLADA_8B | {"n_kv_heads": 8}, 7.21), (ILLADA_8B, 7.62)],
    ids=["llada", "llada_grouped", "illada"],
)
def test_tensor_names_and_shapes_are_the_hubs(config, billions):
    with torch.device("meta"):
        network = LLaDAModelLM(LLaDAConfig.from_dict(dict(config)))
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == hub_shapes(config)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e9, 2) == billions
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


@pytest.mark.parametrize("config", [LLADA_8B, ILLADA_8B], ids=["llada", "illada"])
def test_a_saved_configuration_keeps_the_hubs_fields(config, tmp_path):
    LLaDAConfig.from_dict(dict(config)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    changed = {name for name, value in config.items() if name not in saved or saved[name] != value}
    assert changed <= {"auto_map", "torch_dtype", "transformers_version"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_scaling", YARN),
        ("rope_parameters", YARN),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("embedding_size", 399),
        ("rope_theta", -1.0),
        ("rms_norm_eps", "small"),
        ("eos_token_id", "end"),
        ("eos_token_id", [0, 400]),
        ("mask_token_id", [5]),
        ("n_kv_heads", 8),
    ],
)
def test_a_config_field_this_model_does_not_compute_is_named(folder, field, value):
    edit_json(folder / "config.json", **{field: value})
    assert field in refusal(folder)


@pytest.mark.parametrize("written", ["extra_special_tokens", "additional_special_tokens"])
def test_the_special_tokens_are_read_as_any_transformers_wrote_them(folder, written):
    edit_json(
        folder / "tokenizer_config.json",
        **{"extra_special_tokens": ..., "additional_special_tokens": ..., written: ["<|user|>", "<|assistant|>"]},
    )
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = load_model(str(folder), device="cpu").tokenizer
    assert {"<|user|>", "<|assistant|>"} <= set(tokenizer.all_special_tokens)
    assert tokenizer.decode(tokenizer.encode("<|user|>2 + 3<|assistant|>"), skip_special_tokens=True) == "2 + 3"
