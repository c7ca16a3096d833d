"""What may change the speed of a model must not change what it says."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch

from learn2pd import DualCache, NoCache, PrefixCache, ThresholdPolicy, decode, load_model

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")


def test_every_forward_of_a_compiled_model_is_that_of_the_compiler(tiny_model_folder, make_prompts, monkeypatch):
    """What the compiler makes of it takes half a minute to try; the thorough tests do."""
    forwards = []

    def compiler(function, dynamic):
        assert dynamic
        return lambda *arguments: forwards.append(1) or function(*arguments)

    monkeypatch.setattr(torch, "compile", compiler)
    model = load_model(str(tiny_model_folder), device="cpu", compile=True)
    result = decode(model, make_prompts([4]), policy=ThresholdPolicy(0.6), gen_length=4)
    assert len(forwards) == int(result.forwards.sum()) > 0


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=needs_compiler)])
def test_a_compiled_model_decodes_the_same(backend, tiny_model_folder, make_prompts, monkeypatch):
    """The eager backend captures and guards the graph as the other one does, and does not wait for a C++ compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    uncompiled, compiled = (
        load_model(str(tiny_model_folder), device="cpu", compile=compile) for compile in (False, True)
    )
    plain, fused = (
        decode(model, make_prompts([4, 11]), policy=ThresholdPolicy(0.6), cache=DualCache(), gen_length=4)
        for model in (uncompiled, compiled)
    )
    assert fused.tokens.equal(plain.tokens)
    assert fused.forwards.equal(plain.forwards)


def test_half_precision_logits_are_those_of_full_precision_within_its_rounding(
    tiny_model_folder, tiny_model, make_prompts
):
    halved = load_model(str(tiny_model_folder), device="cpu", dtype="bfloat16")
    tokens = torch.tensor(make_prompts([40]))
    with torch.inference_mode():
        full, half = (model.adapter.network(tokens).logits.float() for model in (tiny_model, halved))
    assert half.dtype == full.dtype
    assert ((full - half).abs().mean() / full.abs().mean()) < 0.03


@pytest.mark.parametrize("cache", [NoCache(), PrefixCache(), DualCache()], ids=lambda cache: cache.name)
def test_half_precision_decodes_with_every_cache(cache, tiny_model_folder, make_prompts):
    halved = load_model(str(tiny_model_folder), device="cpu", dtype="bfloat16")
    result = decode(halved, make_prompts([4, 11]), policy=ThresholdPolicy(0.6), cache=cache, gen_length=12)
    assert not result.failed.any()
    assert (result.tokens != halved.spec.mask_id).all()
