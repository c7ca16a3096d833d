"""Models whose blocks see only what lies before them: an exact cache, an absolute grid, nothing from the future."""

from __future__ import annotations

from dataclasses import replace

import pytest

from learn2pd import (
    AdaBlockScheduler,
    BlocksScheduler,
    CausalBlockCache,
    DSBScheduler,
    EntropySumPolicy,
    EotFilledStop,
    EotStop,
    FixedPolicy,
    LookaheadScheduler,
    LowConfidencePolicy,
    NoCache,
    NoStop,
    PrefixCache,
    SubBlockCache,
    SubBlocksScheduler,
    ThresholdPolicy,
    UserError,
    decode,
)
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.loading import Model
from learn2pd.predictors.filter import FilterPolicy
from learn2pd.predictors.networks import MLP
from learn2pd.predictors.saving import Contract, Predictor
from tests.contract.helpers import BLOCK, MODELS, Reviser, every_second, outcome, run

GRID = BlocksScheduler(BLOCK, "grid")
POLICIES = [
    FixedPolicy(),
    ThresholdPolicy(0.5),
    ThresholdPolicy(0.0),
    LowConfidencePolicy(0.3, 3),
    EntropySumPolicy(2.0),
    Reviser(0.2, 6, False),
    Reviser(0.2, 6, True),
]
STOPS = [NoStop(), EotStop(0.0), EotFilledStop(), EotFilledStop(False)]
FAMILIES = ["sdar", "sdar_moe", "llada2", "fast_dllm_v2"]


def causal_model(name, request):
    """The tiny model of a block-causal family, or one of full attention that reads blocks."""
    if name in FAMILIES:
        return request.getfixturevalue("tiny_family")(name)
    model = request.getfixturevalue(name)
    return Model(ModelAdapter(model.adapter.network, replace(model.spec, causal_block=BLOCK)), model.tokenizer)


@pytest.fixture(params=every_second([*MODELS, *FAMILIES]))
def causal(request):
    return causal_model(request.param, request)


# Every policy with every model; the stop rules take turns, so that each of them meets every policy and every model.
CASES = [
    pytest.param(name, policy, stop, marks=[] if (one + other) % len(STOPS) == turn else pytest.mark.thorough)
    for one, name in enumerate([*MODELS, *FAMILIES])
    for other, policy in enumerate(POLICIES)
    for turn, stop in enumerate(STOPS)
]


@pytest.mark.parametrize(("name", "policy", "stop"), CASES, ids=repr)
def test_the_exact_cache_equals_none_and_a_row_equals_itself_alone(name, policy, stop, make_prompts, request):
    causal = causal_model(name, request)
    prompts = make_prompts([1, 9, 25, 40, 16])  # the last one ends on a block's edge
    parts = {"scheduler": GRID, "stop": stop}
    plain = outcome(run(causal, prompts, policy, cache=NoCache(), **parts), causal)
    cached = outcome(run(causal, prompts, policy, cache=CausalBlockCache(), **parts), causal)
    assert cached.pop("columns") < plain.pop("columns")
    assert cached == plain
    number = (1, 4)[STOPS.index(stop) % 2]
    alone = outcome(run(causal, [prompts[number]], policy, cache=CausalBlockCache(), index=[number], **parts), causal)
    alone.pop("columns")
    assert {key: [rows[number]] for key, rows in cached.items()} == alone


def test_a_longer_canvas_changes_nothing_before_it(causal, make_prompts):
    prompts = make_prompts([9, 20])
    short, long = (
        run(causal, prompts, ThresholdPolicy(0.5), scheduler=GRID, gen_length=length).canvas for length in (16, 40)
    )
    for row, prompt in enumerate(prompts):
        whole = (len(prompt) + 16) // BLOCK * BLOCK - len(prompt)  # the last block that the short canvas holds whole
        assert short[row, :whole].equal(long[row, :whole])


def test_blocks_of_another_length_or_alignment_are_refused(causal):
    for scheduler in (BlocksScheduler(BLOCK), BlocksScheduler(2 * BLOCK, "grid")):
        with pytest.raises(UserError, match=f"blocks of {BLOCK} tokens from the start"):
            decode(causal, [[5]], policy=FixedPolicy(), scheduler=scheduler, gen_length=BLOCK)


def test_a_prefix_cache_on_a_grid_costs_no_token_of_a_single_step_a_block(causal, make_prompts):
    prompts = make_prompts([3, 12])
    plain, cached = (
        outcome(run(causal, prompts, ThresholdPolicy(0.0), scheduler=GRID, cache=cache), causal)["tokens"]
        for cache in (NoCache(), PrefixCache())
    )
    assert plain == cached


@pytest.mark.parametrize(
    "sub_block_length", [2, *(pytest.param(length, marks=pytest.mark.thorough) for length in (1, 4, 8))]
)
def test_sub_blocks_decode_alike_with_and_without_the_exact_cache(causal, sub_block_length, make_prompts):
    prompts = make_prompts([1, 9, 25, 40, 16])
    parts = {"scheduler": SubBlocksScheduler(BLOCK, sub_block_length), "stop": EotFilledStop(False)}
    plain = outcome(run(causal, prompts, LowConfidencePolicy(0.3), cache=NoCache(), **parts), causal)
    cached = outcome(run(causal, prompts, LowConfidencePolicy(0.3), cache=CausalBlockCache(), **parts), causal)
    assert cached.pop("columns") < plain.pop("columns")
    assert cached == plain
    stale = outcome(
        run(causal, prompts, LowConfidencePolicy(0.3), cache=SubBlockCache(sub_block_length), **parts), causal
    )
    for number in (1, 4):
        cache = SubBlockCache(sub_block_length)
        alone = run(causal, [prompts[number]], LowConfidencePolicy(0.3), cache=cache, index=[number], **parts)
        alone = outcome(alone, causal)
        assert alone.pop("columns") <= [stale["columns"][number]]
        assert {key: [rows[number]] for key, rows in stale.items() if key != "columns"} == alone


def test_a_sub_block_cache_needs_its_scheduler(causal):
    for scheduler in (GRID, SubBlocksScheduler(BLOCK, 2)):
        with pytest.raises(UserError, match="use SubBlocksScheduler"):
            decode(causal, [[5]], policy=FixedPolicy(), scheduler=scheduler, cache=SubBlockCache(4), gen_length=BLOCK)


def test_the_default_scheduler_is_the_models_own_blocks(causal, make_prompts):
    prompts = make_prompts([3, 12])
    named, default = (
        decode(causal, prompts, policy=ThresholdPolicy(0.5), scheduler=scheduler, gen_length=20).tokens
        for scheduler in (GRID, None)
    )
    assert named.equal(default)


@pytest.mark.parametrize("scheduler", [AdaBlockScheduler((1,), BLOCK), DSBScheduler(BLOCK), LookaheadScheduler(BLOCK)])
def test_windows_that_a_block_cannot_follow_are_refused_in_one_line(causal, scheduler):
    with pytest.raises(UserError, match=f"reads blocks of {BLOCK} tokens") as error:
        decode(causal, [[5]], policy=FixedPolicy(), scheduler=scheduler, gen_length=BLOCK)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trained", ["prompt", "grid"])
def test_a_filter_of_fixed_blocks_decodes_on_the_alignment_of_its_training_alone(causal, tiny_model, trained):
    for model, alignment in ((causal, "grid"), (tiny_model, "prompt")):
        contract = Contract.of(model.spec, block_length=BLOCK, alignment=trained)
        options = {"policy": FilterPolicy(Predictor("filter", MLP(BLOCK), 0.5, contract)), "gen_length": BLOCK}
        scheduler = BlocksScheduler(BLOCK, alignment)
        if trained == alignment:
            decode(model, [[5] * 11], scheduler=scheduler, **options)
        else:
            with pytest.raises(UserError, match=f"trained for alignment '{trained}', this run has '{alignment}'"):
                decode(model, [[5] * 11], scheduler=scheduler, **options)
