"""Canvases that grow: the answers of a long canvas, at the cost of the answer."""

from __future__ import annotations

import pytest
import torch

from learn2pd import (
    BlocksScheduler,
    CausalBlockCache,
    EotFilledStop,
    EotStop,
    GrowCache,
    LowConfidencePolicy,
    NoCache,
    NoStop,
    ThresholdPolicy,
    UserError,
    decode,
)
from learn2pd.models.kv import KVStore
from tests.contract.helpers import BLOCK, MODELS, every_second, outcome, policies, run

LONG = 120
END = 40  # the generation position at which only an end-of-text is allowed
POLICIES = [ThresholdPolicy(0.3), LowConfidencePolicy(0.5, 2)]


@pytest.fixture(params=["sdar", "llada2", "fast_dllm_v2"])
def causal(request, tiny_family):
    return tiny_family(request.param)


def ended(model, rows):
    """The allowed ids with which every answer ends at `END` at the latest."""
    allowed = torch.full((rows, LONG, 1), -1)
    allowed[:, END] = model.spec.eot_ids[0]
    return allowed


@pytest.fixture(params=MODELS)
def whole(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(
    ("policy", "stop"),
    [
        pytest.param(policy, stop, marks=pytest.mark.thorough if (one + other) % 2 else [])
        for one, policy in enumerate(POLICIES)
        for other, stop in enumerate((EotStop(0.0), EotFilledStop()))
    ],
    ids=repr,
)
def test_on_a_block_causal_model_growth_is_exact(causal, policy, stop, make_prompts):
    prompts = make_prompts([3, 9, 16])
    options = {"policy": policy, "stop": stop, "allowed": ended(causal, len(prompts))}
    grown = decode(causal, prompts, max_new_tokens=LONG, **options)
    fixed = decode(causal, prompts, gen_length=LONG, **options)
    assert grown.tokens.equal(fixed.tokens)
    assert grown.forwards.equal(fixed.forwards)
    assert (grown.columns < fixed.columns).all()


def test_keys_and_values_reach_as_far_as_the_answer(causal, make_prompts, monkeypatch):
    stores = []
    original = KVStore.__init__

    def noted(self, *arguments):
        original(self, *arguments)
        stores.append(self)

    monkeypatch.setattr(KVStore, "__init__", noted)
    options = {"policy": ThresholdPolicy(0.3), "stop": EotFilledStop(), "allowed": ended(causal, 1)}
    decode(causal, make_prompts([9]), max_new_tokens=LONG, **options)
    assert 0 < stores[0].reached <= 1.5 * (9 + END + BLOCK)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_on_other_models_the_sequence_ends_with_the_window(whole, policy, make_prompts):
    """A block is decoded as the last block of a canvas that ends with it, and a row as itself alone."""
    prompts = make_prompts([3, 9])
    parts = {"scheduler": BlocksScheduler(BLOCK), "stop": NoStop()}
    grown = run(whole, prompts, policy, cache=GrowCache(), gen_length=3 * BLOCK, **parts)
    first = run(whole, prompts, policy, cache=NoCache(), gen_length=BLOCK, **parts)
    assert grown.canvas[:, :BLOCK].equal(first.canvas)
    second = [[*prompt, *row] for prompt, row in zip(prompts, first.canvas.tolist(), strict=True)]
    assert grown.canvas[:, BLOCK : 2 * BLOCK].equal(run(whole, second, policy, gen_length=BLOCK, **parts).canvas)
    everything = outcome(grown, whole)
    for number, prompt in enumerate(prompts):
        alone = run(whole, [prompt], policy, cache=GrowCache(), gen_length=3 * BLOCK, index=[number], **parts)
        assert outcome(alone, whole) == {key: [rows[number]] for key, rows in everything.items()}


# what a canvas holds behind the window decides nothing, unless the policy measures by the length of the canvas
OF_ANY_LENGTH = [name for name, policy in policies().items() if not policy.reads_canvas and name != "prophet"]


@pytest.mark.parametrize("policy", every_second(OF_ANY_LENGTH))
def test_the_answer_does_not_depend_on_how_long_the_canvas_may_become(policy, tiny_model, make_prompts):
    prompts = make_prompts([3, 9])
    parts = {"scheduler": BlocksScheduler(BLOCK), "cache": GrowCache()}
    short, long = (
        run(tiny_model, prompts, policies()[policy], gen_length=blocks * BLOCK, **parts) for blocks in (2, 5)
    )
    assert long.canvas[:, : 2 * BLOCK].equal(short.canvas)
    assert long.committed_at[:, : 2 * BLOCK].equal(short.committed_at)


def test_the_default_cache_grows(whole, make_prompts):
    prompts = make_prompts([3, 9])
    options = {"policy": ThresholdPolicy(0.3), "scheduler": BlocksScheduler(BLOCK), "stop": EotStop(0.0)}
    named = decode(whole, prompts, cache="grow", gen_length=LONG, **options)
    default = decode(whole, prompts, max_new_tokens=LONG, **options)
    assert torch.equal(named.tokens, default.tokens)


def test_what_cannot_grow_is_refused(causal, whole, make_prompts):
    prompts = make_prompts([3])
    with pytest.raises(UserError, match="max_new_tokens=40: cache 'none' computes the whole canvas"):
        decode(causal, prompts, policy=ThresholdPolicy(0.3), cache=NoCache(), max_new_tokens=40)
    with pytest.raises(UserError, match="max_new_tokens=0: expected at least 1"):
        decode(causal, prompts, policy=ThresholdPolicy(0.3), max_new_tokens=0)
    with pytest.raises(UserError, match="use cache causal_block"):
        decode(causal, prompts, policy=ThresholdPolicy(0.3), cache=GrowCache(), gen_length=40)
    with pytest.raises(UserError, match="for block-causal models"):
        decode(whole, prompts, policy=ThresholdPolicy(0.3), cache=CausalBlockCache(), gen_length=40)
