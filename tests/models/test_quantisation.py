"""Weights in 8 and 4 bits: what is quantised, how near the answers stay, and what is refused."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from learn2pd import ThresholdPolicy, decode
from learn2pd.models.loading import load_model, read_skeleton
from learn2pd.models.quantisation import KINDS
from learn2pd.models.sizes import sizes_of
from tests.fixtures import TINY_FAMILIES, save_tiny_family
from tests.models.helpers import refusal

EMBEDDED = ["checkpoints/tiny-llada", "checkpoints/tiny-sdar"]


def quantised(folder, kind: str, **options):
    """A model with quantised weights, where the package for them is installed."""
    pytest.importorskip(KINDS[kind])
    return load_model(folder, device="cpu", quantization=kind, **options)


def held_bytes(network) -> int:
    """The bytes that saved weights take, with their scales."""
    held = 0
    for tensor in network.state_dict().values():
        inner = getattr(tensor, "__tensor_flatten__", None)
        held += sum(getattr(tensor, name).nbytes for name in inner()[0]) if inner else tensor.nbytes
    return held


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.05), ("nf4", 0.3)])
@pytest.mark.parametrize("path", EMBEDDED)
def test_the_embedded_models_answer_nearly_the_same(path, kind, most):
    model = quantised(path, kind)
    plain = load_model(path, device="cpu")
    ids = torch.randint(10, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = plain.adapter.network(ids).logits
        logits = model.adapter.network(ids).logits
    assert not logits.equal(expected)
    assert (logits - expected).square().mean().sqrt() < most * expected.std()
    prompts = ["2 + 2 = ?", "5 + 3 = ?", "9 - 4 = ?"]
    options = {"policy": ThresholdPolicy(), "gen_length": 16}
    if kind == "int8":
        assert decode(model, prompts, **options).texts == decode(plain, prompts, **options).texts
    assert model.spec.fingerprint != plain.spec.fingerprint
    assert model.spec.name == f"{plain.spec.name}+{kind}"


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("nf4", 0.15)])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_every_matrix_of_the_layers_is_quantised_and_nothing_else(family, kind, most, tokenizer, tmp_path):
    folder = save_tiny_family(family, tmp_path / "model", tokenizer, hidden_size=64)
    model = quantised(folder, kind)
    plain = dict(load_model(folder, device="cpu").adapter.network.named_modules())
    torch.manual_seed(0)
    changed = set()
    for name, module in model.adapter.network.named_modules():
        if isinstance(module, torch.nn.Linear):
            x = torch.randn(3, module.in_features)
            with torch.inference_mode():
                expected, output = plain[name](x), module(x)
            assert (output - expected).norm() <= most * expected.norm(), name
            changed |= set() if output.equal(expected) else {name}
    matrices = {name for name, module in plain.items() if isinstance(module, torch.nn.Linear)}
    matrices = {name for name in matrices if "layers." in name and not name.endswith("mlp.gate")}
    if kind == "nf4":
        matrices = {name for name in matrices if plain[name].in_features % 64 == 0}
    assert changed == matrices
    assert matrices
    assert decode(model, [[20, 21, 22]], policy=ThresholdPolicy(), gen_length=8).forwards.item() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_estimate_knows_the_bytes_of_quantised_weights(kind, dtype):
    path = EMBEDDED[0]
    network = quantised(path, kind, dtype=dtype).adapter.network
    skeleton = read_skeleton(path, dtype)
    estimate = sizes_of(skeleton, 1, 16, kind).weights
    assert estimate < 0.75 * sizes_of(skeleton, 1, 16).weights
    assert abs(estimate - held_bytes(network)) < 0.03 * estimate


@pytest.mark.parametrize("wrong", ["int3", "", 8, True, ["int8"]])
def test_an_unknown_kind_is_refused(wrong, tiny_model_folder):
    message = refusal(tiny_model_folder, quantization=wrong)
    assert message.startswith(f"quantization={wrong!r}")
    assert "int8, nf4" in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_package_is_named_before_anything_is_read(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, KINDS[kind], None)
    message = refusal("no/such/folder/at/all", quantization=kind)
    assert KINDS[kind] in message
    assert 'pip install "learn2pd[quantization]"' in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_package_is_told_in_one_line(kind, monkeypatch):
    def broken(name):
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert "libcudart.so" in refusal("no/such/folder/at/all", quantization=kind)
