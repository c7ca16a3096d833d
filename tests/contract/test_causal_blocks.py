"""Models whose blocks see only what lies before them: an exact cache, an absolute grid, nothing from the future."""

from __future__ import annotations

from dataclasses import replace

import pytest

from learn2pd import (
    BlocksScheduler,
    CausalBlockCache,
    EotStop,
    FixedPolicy,
    NoCache,
    NoStop,
    PrefixCache,
    ThresholdPolicy,
    UserError,
    decode,
)
from learn2pd.models.adapter import ModelAdapter
from learn2pd.models.loading import Model
from tests.contract.helpers import BLOCK, MODELS, Reviser, outcome, run

GRID = BlocksScheduler(BLOCK, "grid")
POLICIES = [FixedPolicy(), ThresholdPolicy(0.5), ThresholdPolicy(0.0), Reviser(0.2, 6, False), Reviser(0.2, 6, True)]


@pytest.fixture(params=MODELS)
def causal(request):
    model = request.getfixturevalue(request.param)
    return Model(ModelAdapter(model.adapter.network, replace(model.spec, causal_block=BLOCK)), model.tokenizer)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("stop", [NoStop(), EotStop(0.0)], ids=lambda stop: stop.name)
def test_the_exact_cache_equals_none_and_a_row_equals_itself_alone(causal, policy, stop, make_prompts):
    prompts = make_prompts([1, 9, 25, 40, 16])  # the last one ends on a block's edge
    parts = {"scheduler": GRID, "stop": stop}
    plain = outcome(run(causal, prompts, policy, cache=NoCache(), **parts), causal)
    cached = outcome(run(causal, prompts, policy, cache=CausalBlockCache(), **parts), causal)
    assert cached.pop("columns") < plain.pop("columns")
    assert cached == plain
    for number in (1, 4):
        alone = outcome(
            run(causal, [prompts[number]], policy, cache=CausalBlockCache(), index=[number], **parts), causal
        )
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
