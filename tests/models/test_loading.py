from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from learn2pd.embedded.tokenizer import MASK
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.loading import load_model
from tests.models.helpers import edit_json, edit_weights, refusal


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def test_a_loaded_model_is_the_saved_one(tiny_model, tiny_model_folder):
    stored = load_file(tiny_model_folder / "model.safetensors")
    loaded = tiny_model.adapter.network.state_dict()
    assert stored.keys() == loaded.keys()
    assert all(stored[name].equal(loaded[name]) for name in stored)
    spec = tiny_model.spec
    assert (spec.mask_id, spec.eot_ids, spec.pad_id, spec.vocab_size, spec.max_length) == (1, (0,), 0, 400, 512)
    assert not tiny_model.adapter.network.training


def test_a_model_saved_again_loads_to_the_same(tiny_model, folder, tmp_path):
    again = tmp_path / "again"
    tiny_model.adapter.network.save_pretrained(again)
    tiny_model.tokenizer.save_pretrained(again)
    assert load_model(str(again), device="cpu").spec.fingerprint == tiny_model.spec.fingerprint


def test_tied_embeddings_load(tokenizer, tmp_path):
    config = LLaDAConfig(
        d_model=16,
        n_layers=1,
        n_heads=2,
        mlp_hidden_size=16,
        vocab_size=len(tokenizer),
        mask_token_id=1,
        eos_token_id=0,
        weight_tying=True,
    )
    network = LLaDAModelLM(config)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), device="cpu").adapter.network
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert loaded(ids).logits.equal(network.eval()(ids).logits)


def test_the_fingerprint_follows_the_weights_and_nothing_else(tiny_model, folder):
    assert load_model(str(folder), device="cpu").spec.fingerprint == tiny_model.spec.fingerprint
    edit_weights(folder, lambda tensors: tensors["model.transformer.blocks.1.ff_norm.weight"].add_(0.01))
    assert load_model(str(folder), device="cpu").spec.fingerprint != tiny_model.spec.fingerprint


def test_the_fingerprint_follows_the_configuration(tiny_model, folder):
    edit_json(folder / "config.json", rope_theta=10_000.0)
    assert load_model(str(folder), device="cpu").spec.fingerprint != tiny_model.spec.fingerprint


def test_a_missing_folder_is_named(tmp_path):
    line = refusal(tmp_path / "nowhere")
    assert "nowhere" in line
    assert "does not exist" in line
    assert "config.json" in line


def test_a_folder_without_config_is_named(folder):
    (folder / "config.json").unlink()
    assert "holds no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "", "[]", "\x00", '"llada"'])
def test_an_unreadable_config_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("model_type", ["llama", ..., None])
def test_another_model_type_is_refused_with_the_known_ones(folder, model_type):
    edit_json(folder / "config.json", model_type=model_type)
    line = refusal(folder)
    assert "model_type" in line
    assert "expected" in line
    assert {"llada", "Dream", "sdar"} <= set(re.findall(r"\w+", line.partition("expected")[2]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alibi", True),
        ("activation_type", "swiglu"),
        ("block_type", "sequential"),
        ("include_qkv_bias", True),
        ("layer_norm_type", "default"),
        ("rope", False),
        ("scale_logits", True),
    ],
)
def test_a_config_field_this_model_does_not_compute_is_named(folder, field, value):
    edit_json(folder / "config.json", **{field: value})
    assert field in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("d_model", "many"), ("n_heads", 0), ("n_heads", 5), ("n_kv_heads", 3), ("vocab_size", -1), ("n_layers", None)],
)
def test_a_config_field_that_makes_no_model_is_refused(folder, field, value):
    edit_json(folder / "config.json", **{field: value})
    assert f"{field}={value}" in refusal(folder).replace("'", "")


def test_weights_cut_short_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "safetensors" in refusal(folder)


def test_absent_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refusal(folder)


def test_weights_in_pickle_form_are_not_loaded(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refusal(folder)


NAME = "model.transformer.blocks.0.q_proj.weight"


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("missing", lambda tensors: tensors.pop(NAME)),
        ("unknown", lambda tensors: tensors.update({NAME.replace("weight", "bias"): torch.zeros(32)})),
        ("misshapen", lambda tensors: tensors.update({NAME: torch.zeros(16, 32)})),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_a_tensor_that_does_not_fit_is_named(folder, kind, change):
    edit_weights(folder, change)
    line = refusal(folder)
    assert kind in line
    assert NAME.removesuffix("weight") in line


def test_a_tokenizer_without_the_mask_token_is_refused(folder):
    edit_json(folder / "config.json", mask_token_id=399, vocab_size=400)
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["model"]["vocab"] = {token: number for token, number in fields["model"]["vocab"].items() if number < 380}
    fields["model"]["merges"] = [
        merge for merge in fields["model"]["merges"] if "".join(merge) in fields["model"]["vocab"]
    ]
    path.write_text(json.dumps(fields))
    line = refusal(folder)
    assert "mask token" in line
    assert "399" in line


@pytest.mark.parametrize("mask_id", [400, -1])
def test_a_mask_id_outside_the_vocabulary_is_refused(folder, mask_id):
    edit_json(folder / "config.json", mask_token_id=mask_id)
    line = refusal(folder)
    assert "mask" in line
    assert str(mask_id) in line


def test_an_absent_tokenizer_is_refused(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refusal(folder)


def test_a_damaged_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer" in refusal(folder)


def test_an_unknown_dtype_or_device_is_refused_with_the_known_ones(folder):
    line = refusal(folder, dtype="float8")
    assert "float8" in line
    assert "float32, bfloat16, float16" in line
    assert "abacus" in refusal(folder, device="abacus")


def test_the_dtype_asked_for_is_the_dtype_of_every_tensor(folder):
    network = load_model(str(folder), dtype="bfloat16", device="cpu").adapter.network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


def test_a_model_without_chat_template_takes_plain_text(folder):
    for path in folder.glob("chat_template*"):
        path.unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=...)
    model = load_model(str(folder), device="cpu")
    assert model.tokenizer.decode(model.encode("7 pears")) == "7 pears"


@pytest.mark.parametrize("family", ["tiny_model", "tiny_model_grouped"])
def test_a_padded_row_computes_what_it_computes_alone(family, make_prompts, request):
    network = request.getfixturevalue(family).adapter.network
    rows, width = make_prompts([3, 11, 24]), 24
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    position = (real.long().cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        padded = network(tokens, attention_mask=real, position_ids=position).logits
        for number, row in enumerate(rows):
            alone = network(torch.tensor([row])).logits[0]
            assert torch.allclose(padded[number, -len(row) :], alone, atol=1e-4)


@pytest.mark.parametrize("family", ["tiny_model", "tiny_model_grouped"])
def test_scoring_some_positions_gives_their_full_logits(family, make_prompts, request):
    network = request.getfixturevalue(family).adapter.network
    ids = torch.tensor(make_prompts([15]))
    with torch.inference_mode():
        assert torch.allclose(network.score(network.hidden(ids)[:, [2, 9]]), network(ids).logits[:, [2, 9]], atol=1e-5)


def test_attention_is_bidirectional(tiny_model, make_prompts):
    ids = torch.tensor(make_prompts([12]))
    changed = ids.clone()
    changed[0, -1] += 1
    with torch.inference_mode():
        first, second = (tiny_model.adapter.network(tokens).logits[0, 0] for tokens in (ids, changed))
    assert not torch.allclose(first, second, atol=1e-3)


def test_the_mask_token_of_the_tokenizer_is_the_models(tiny_model):
    assert tiny_model.tokenizer.convert_tokens_to_ids(MASK) == tiny_model.spec.mask_id
