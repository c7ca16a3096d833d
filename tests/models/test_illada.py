"""LLaDA checkpoints as they lie on the hub, and iLLaDA: the same code with grouped-query attention and one matrix for embeddings and head."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from learn2pd import BlockCache, NoStop, ThresholdPolicy, decode
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.loading import load_model
from tests.models.test_dream import YARN
from tests.models.test_loading import edit_json, edit_weights, refusal

LLADA_8B = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
ILLADA_8B = LLADA_8B | {
    "n_kv_heads": 8, "mlp_hidden_size": 14336, "vocab_size": 155136, "embedding_size": 155136, "max_sequence_length": 8192, "weight_tying": True,
    "mask_token_id": 5, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
MASK = 5


def hub_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the hub's checkpoints, written out by hand."""
    width, inner = config["d_model"], config["mlp_hidden_size"]
    kv_width = width // config["n_heads"] * config["n_kv_heads"]
    shapes = {"wte.weight": (config["embedding_size"], width), "ln_f.weight": (width,)}
    if not config["weight_tying"]:
        shapes["ff_out.weight"] = (config["embedding_size"], width)
    for number in range(config["n_layers"]):
        block = {
            "q_proj.weight": (width, width),
            "k_proj.weight": (kv_width, width),
            "v_proj.weight": (kv_width, width),
            "attn_out.weight": (width, width),
            "ff_proj.weight": (inner, width),
            "up_proj.weight": (inner, width),
            "ff_out.weight": (width, inner),
            "attn_norm.weight": (width,),
            "ff_norm.weight": (width,),
        }
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    return {f"model.transformer.{name}": shape for name, shape in shapes.items()}


def write_checkpoint(folder, tokenizer, **changes):
    """A small checkpoint in the hub's form, whose code must not run; the mask token has another id than the tokenizer's."""
    config = ILLADA_8B | {
        "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48, "vocab_size": len(tokenizer),
        "embedding_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    } | changes  # fmt: skip
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_llada.py", "modeling_llada.py"):
        (folder / name).write_text("raise SystemExit('remote code was run')")
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) * 0.3 + float("norm" in name or "ln_f" in name) for name, shape in hub_shapes(config).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def hub_folder(tokenizer, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("illada"), tokenizer)


@pytest.fixture(scope="module")
def illada(hub_folder):
    return load_model(str(hub_folder), device="cpu")


def logits(network) -> torch.Tensor:
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
    network, embedding = illada.adapter.network, load_file(hub_folder / "model.safetensors")["model.transformer.wte.weight"]
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


@pytest.mark.parametrize("cache", [None, BlockCache("prefix"), BlockCache("dual")])
def test_a_tied_model_decodes(illada, cache):
    result = decode(illada, ["2 + 3?", "7 pears and 4 pears"], policy=ThresholdPolicy(0.5), stop=NoStop(), cache=cache, gen_length=20)
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
        ("rope_scaling", YARN), ("rope_parameters", YARN), ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("embedding_size", 399), ("rope_theta", -1.0), ("rms_norm_eps", "small"), ("eos_token_id", "end"), ("eos_token_id", [0, 400]),
        ("mask_token_id", [5]), ("n_kv_heads", 8),
    ],
)  # fmt: skip
def test_a_config_field_this_model_does_not_compute_is_named(folder, field, value):
    edit_json(folder / "config.json", **{field: value})
    assert field in refusal(folder)


@pytest.mark.parametrize("written", ["extra_special_tokens", "additional_special_tokens"])
def test_the_special_tokens_are_read_as_any_transformers_wrote_them(folder, written):
    edit_json(
        folder / "tokenizer_config.json", **{"extra_special_tokens": ..., "additional_special_tokens": ..., written: ["<|user|>", "<|assistant|>"]}
    )
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = load_model(str(folder), device="cpu").tokenizer
    assert {"<|user|>", "<|assistant|>"} <= set(tokenizer.all_special_tokens)
    assert tokenizer.decode(tokenizer.encode("<|user|>2 + 3<|assistant|>"), skip_special_tokens=True) == "2 + 3"
