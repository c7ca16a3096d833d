"""Every policy with every scheduler, cache and model that it goes with: ends, fills the canvas, and does not care about its neighbours."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd import UserError, decode
from learn2pd.loop import step as predictor
from tests.contract.helpers import BLOCK, CACHES, COMBINATIONS, GEN, MODELS, SCHEDULERS, STOPS, fits, oracle, outcome, policies, run

STOP_NAMES = itertools.cycle(STOPS)  # every combination with one stop rule; the rules in all combinations are too many
CASES = [(*combination, next(STOP_NAMES)) for combination in COMBINATIONS]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("policy", "scheduler", "cache", "stop"), CASES)
def test_a_row_ends_within_the_bound_and_equals_itself_alone(policy, scheduler, cache, stop, family, make_prompts, request):
    model = request.getfixturevalue(family)
    prompts = make_prompts([3, 17, 9], seed=len(policy) + len(cache))
    chosen = oracle(model, prompts) if policy == "oracle" else policies()[policy]
    parts = {"stop": STOPS[stop], "scheduler": SCHEDULERS[scheduler], "cache": CACHES[cache]}
    state = run(model, prompts, chosen, **parts)
    assert not state.masked.any()
    assert (state.canvas != model.spec.mask_id).all()
    assert ((state.forwards >= 1) & (state.forwards <= GEN)).all()
    together = outcome(state, model)
    for number, prompt in enumerate(prompts):
        alone = outcome(run(model, [prompt], chosen, index=[number], **parts), model)
        assert {key: [rows[number]] for key, rows in together.items()} == alone


@settings(max_examples=60)
@given(
    combination=st.sampled_from(COMBINATIONS),
    stop=st.sampled_from(list(STOPS)),
    family=st.sampled_from(MODELS),
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    seed=st.integers(0, 1000),
)
def test_any_batch_of_any_lengths_equals_its_rows_alone(combination, stop, family, lengths, seed, make_prompts, request):
    """Rows of different lengths are in different phases: one refreshes its cache while another reuses it, some have long finished."""
    model, prompts = request.getfixturevalue(family), make_prompts(lengths, seed)
    policy, scheduler, cache = combination
    chosen = oracle(model, prompts) if policy == "oracle" else policies()[policy]
    parts = {"stop": STOPS[stop], "scheduler": SCHEDULERS[scheduler], "cache": CACHES[cache]}
    together = outcome(run(model, prompts, chosen, **parts), model)
    for number, prompt in enumerate(prompts):
        alone = outcome(run(model, [prompt], chosen, index=[number], **parts), model)
        assert {key: [rows[number]] for key, rows in together.items()} == alone


@pytest.mark.parametrize(("scheduler", "cache"), [("blocks", "dual"), ("blocks", "none"), ("dsb_greedy", "dsb"), ("lookahead", "lookahead")])
@pytest.mark.parametrize("policy", ["threshold0.6", "apd", "entropy"])
def test_samples_depend_neither_on_plans_nor_on_how_many_positions_are_scored_at_once(
    policy, scheduler, cache, tiny_model, make_prompts, monkeypatch
):
    prompts = make_prompts([1, 17, 9, 30])
    parts = {"scheduler": SCHEDULERS[scheduler], "cache": CACHES[cache], "stop": STOPS["eot0.5"], "temperature": 0.7}
    alone = [outcome(run(tiny_model, [prompt], policies()[policy], index=[number], **parts), tiny_model) for number, prompt in enumerate(prompts)]
    monkeypatch.setattr(predictor, "SCORE_VALUES", 3 * tiny_model.spec.vocab_size)
    together = outcome(run(tiny_model, prompts, policies()[policy], **parts), tiny_model)
    assert [{key: [rows[number]] for key, rows in together.items()} for number in range(len(prompts))] == alone


REFUSED = [(p, s, c) for p, s, c in itertools.product(["fixed", "filter"], SCHEDULERS, CACHES) if not fits(p, s, c)]


@pytest.mark.parametrize(("policy", "scheduler", "cache"), REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_runs(policy, scheduler, cache, tiny_model):
    with pytest.raises(UserError) as error:
        decode(tiny_model, [[5, 6]], policy=policies()[policy], scheduler=SCHEDULERS[scheduler], cache=CACHES[cache], gen_length=BLOCK)
    assert SCHEDULERS[scheduler].name in str(error.value)
    assert "\n" not in str(error.value)
