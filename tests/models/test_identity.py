"""A model's identity is every byte of every weight and every field that matters, and nothing else.

Asking for it a second time costs nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from learn2pd.models import identity
from learn2pd.models.dream import DreamConfig
from learn2pd.models.llada import LLaDAConfig
from learn2pd.models.loading import fingerprint, load_model
from tests.models.helpers import edit_json, edit_weights

OLD = time.time_ns() - 3600 * 10**9


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A user's cache folder, empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "learn2pd" / "weights"


def of(folder, **options) -> str:
    """The fingerprint of the model in a folder."""
    return load_model(folder, device="cpu", **options).spec.fingerprint


def settle(folder: Path) -> None:
    """As if the files had been there for an hour."""
    for path in folder.iterdir():
        os.utime(path, ns=(OLD, OLD))


def entries(cache: Path) -> list[Path]:
    """The files of the cache of digests."""
    return sorted(cache.iterdir()) if cache.exists() else []


@given(data=st.data())
def test_every_byte_of_every_tensor_counts(tiny_model_folder, data):
    tensors = load_file(tiny_model_folder / "model.safetensors")
    before = identity.weights_digest(tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    values = tensors[name].flatten().view(torch.uint8)
    values[data.draw(st.integers(0, len(values) - 1))] ^= data.draw(st.integers(1, 255))
    assert identity.weights_digest(tensors) != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_last_value_of_any_tensor_counts_in_a_loaded_model(folder, dtype):
    seen = {of(folder, dtype=dtype)}
    for name in sorted(load_file(folder / "model.safetensors")):
        edit_weights(folder, lambda tensors, name=name: tensors[name].view(-1)[-1:].mul_(2).add_(1))
        seen.add(of(folder, dtype=dtype))
    assert len(seen) == 1 + len(load_file(folder / "model.safetensors"))


def test_rows_swapped_or_a_sign_of_zero_count(folder):
    first = of(folder)
    name = "model.transformer.ff_out.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: tensors[name][torch.arange(399, -1, -1)].contiguous()}))
    second = of(folder)
    edit_weights(folder, lambda tensors: tensors[name].view(-1)[-1:].zero_())
    third = of(folder)
    edit_weights(folder, lambda tensors: tensors[name].view(-1)[-1:].neg_())
    assert len({first, second, third, of(folder)}) == 4


def test_names_types_and_shapes_count():
    tensor = torch.arange(8, dtype=torch.int32)
    variants = [
        {"a": tensor},
        {"b": tensor},
        {"a": tensor.view(2, 4)},
        {"a": tensor.view(4, 2)},
        {"a": tensor.view(torch.float32)},
        {"a": tensor, "b": tensor},
        {},
        {"a": tensor[:0]},
        {"a": torch.tensor(3)},
    ]
    assert len({identity.weights_digest(tensors) for tensors in variants}) == len(variants)


def test_the_form_of_the_files_does_not_count(folder, tmp_path):
    first = of(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for part in range(3):
        inside = names[part::3]
        save_file(
            {name.removeprefix("model."): tensors[name] for name in inside},
            folder / f"{part}.safetensors",
            {"made": "elsewhere"},
        )
        weight_map |= {name.removeprefix("model."): f"{part}.safetensors" for name in inside}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert of(folder) == first
    assert of(folder.rename(tmp_path / "another name")) == first


def test_the_type_that_it_runs_in_counts_and_a_network_in_memory_is_the_same(folder):
    full = load_model(folder, device="cpu")
    half = load_model(folder, device="cpu", dtype="bfloat16")
    assert full.spec.fingerprint != half.spec.fingerprint
    for model in (full, half):
        assert fingerprint(model.adapter.network) == model.spec.fingerprint


# configurations

OTHER = {
    LLaDAConfig: {
        "d_model": 64,
        "n_layers": 3,
        "n_heads": 8,
        "n_kv_heads": 2,
        "mlp_hidden_size": 48,
        "vocab_size": 300,
        "embedding_size": 500,
        "max_sequence_length": 100,
        "rope_theta": 5.0,
        "rms_norm_eps": 1e-3,
        "weight_tying": True,
        "mask_token_id": 9,
        "eos_token_id": 9,
        "pad_token_id": 9,
    },
    DreamConfig: {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "max_position_embeddings": 100,
        "rope_theta": 5.0,
        "rms_norm_eps": 1e-3,
        "mask_token_id": 9,
        "eos_token_id": 9,
        "pad_token_id": 9,
        "bos_token_id": 9,
    },
}
BASE = {
    LLaDAConfig: {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 64,
        "vocab_size": 400,
        "embedding_size": 400,
    },
    DreamConfig: {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in OTHER.items() for field in fields])
def test_every_field_that_matters_counts(kind, field):
    first, second = (kind(**BASE[kind] | change) for change in ({}, {field: OTHER[kind][field]}))
    assert identity.fingerprint(first, "0") != identity.fingerprint(second, "0")


@pytest.mark.parametrize("kind", list(OTHER))
def test_a_field_of_another_family_counts_without_being_listed(kind):
    first, second, third = (kind(**BASE[kind], **change) for change in ({}, {"block_size": 32}, {"block_size": 64}))
    assert len({identity.fingerprint(config, "0") for config in (first, second, third)}) == 3


@pytest.mark.parametrize(
    "field",
    sorted(identity.CANNOT_MATTER - {"num_labels", "id2label", "label2id", "_attn_implementation", "name_or_path"}),
)
@pytest.mark.parametrize("kind", list(OTHER))
def test_a_field_that_cannot_matter_does_not_count(kind, field):
    first, second = kind(**BASE[kind]), kind(**BASE[kind])
    setattr(second, field, "bfloat16" if "dtype" in field else 7)
    assert identity.fingerprint(first, "0") == identity.fingerprint(second, "0")


def test_two_families_with_equal_fields_are_two_models():
    class Other(LLaDAConfig):
        model_type = "other"

    first, second = (kind(**BASE[LLaDAConfig]) for kind in (LLaDAConfig, Other))
    assert identity.fingerprint(first, "0") != identity.fingerprint(second, "0")


def test_where_a_token_is_named_does_not_count(folder):
    first = of(folder)
    edit_json(folder / "config.json", mask_token_id=...)
    assert of(folder) == first


# the cache


def test_the_second_time_is_read_from_the_cache(folder, cache):
    settle(folder)
    first = of(folder)
    [entry] = entries(cache)
    assert of(folder) == first
    assert entries(cache) == [entry]
    entry.write_text("0" * 64)  # as no digest is: who reads it shows that nothing was digested
    assert of(folder) != first
    entry.unlink()
    assert of(folder) == first


@pytest.mark.parametrize("content", ["", "x", "0" * 63, "G" * 64, "0" * 64 + "\n1", "\x80"])
def test_a_damaged_entry_is_written_anew(folder, cache, content):
    settle(folder)
    first = of(folder)
    [entry] = entries(cache)
    good = entry.read_bytes()
    entry.write_bytes(content.encode("latin-1"))
    assert of(folder) == first
    assert entry.read_bytes() == good


def test_an_edit_is_seen_whatever_the_files_times_say(folder, cache):
    settle(folder)
    first = of(folder)
    edit_weights(folder, lambda tensors: tensors["model.transformer.ln_f.weight"].add_(1))
    settle(folder)  # same name, size and time of modification
    assert of(folder) != first
    assert len(entries(cache)) == 2


def test_files_that_have_just_changed_are_not_kept(folder, cache):
    (folder / "model.safetensors").touch()
    of(folder)
    assert entries(cache) == []


def test_each_type_has_an_entry_of_its_own(folder, cache):
    settle(folder)
    assert of(folder) != of(folder, dtype="bfloat16")
    assert len(entries(cache)) == 2
    assert of(folder) != of(folder, dtype="bfloat16")


def test_links_lead_to_the_entry_of_their_files(folder, cache, tmp_path):
    settle(folder)
    first = of(folder)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert of(snapshot) == first
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(
    "what", ["a file in its place", "a file in its parent's place", "a folder in the entry's place"]
)
def test_a_cache_that_cannot_be_used_only_costs_time(folder, cache, what):
    settle(folder)
    first = of(folder)
    [entry] = entries(cache)
    if what == "a folder in the entry's place":
        entry.unlink()
        entry.mkdir()
    else:
        top = cache if what == "a file in its place" else cache.parent
        shutil.rmtree(top)
        top.write_text("")
    assert of(folder) == first


def test_nothing_is_written_beside_the_checkpoint(folder):
    settle(folder)
    before = sorted(folder.iterdir())
    of(folder)
    assert sorted(folder.iterdir()) == before


def test_the_cache_is_where_the_surroundings_say(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert identity.cache_folder() == tmp_path / "cache" / "learn2pd" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert identity.cache_folder() == tmp_path / "hf" / "learn2pd" / "weights"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert identity.cache_folder() == tmp_path / ".cache" / "learn2pd" / "weights"
