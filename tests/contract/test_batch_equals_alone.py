"""A row decoded alone equals the same row in a padded batch: tokens, forwards, commit steps and lengths, for every policy and stop rule."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.contract.helpers import STOPS, oracle, outcome, policies, run

NAMES = [*policies(), "oracle"]
GREEDY = [(name, stop, 0.0) for name in NAMES for stop in STOPS]
SAMPLED = [(name, stop, 0.7) for name in ("fixed", "fixed_half", "threshold0.6", "filter") for stop in ("none", "eot0.5", "paper")]


@pytest.mark.parametrize("family", ["tiny_model", "tiny_model_grouped"])
@pytest.mark.parametrize(("name", "stop", "temperature"), GREEDY + SAMPLED)
def test_a_row_alone_equals_the_row_in_a_batch(name, stop, temperature, family, make_prompts, request):
    model = request.getfixturevalue(family)

    @settings(max_examples=2)
    @example(lengths=[1, 40, 17], seed=0)
    @given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4), seed=st.integers(0, 1000))
    def check(lengths, seed):
        prompts = make_prompts(lengths, seed)
        policy = oracle(model, prompts) if name == "oracle" else policies()[name]
        together = outcome(run(model, prompts, policy, STOPS[stop], temperature=temperature), model)
        for number, prompt in enumerate(prompts):
            alone = outcome(run(model, [prompt], policy, STOPS[stop], temperature=temperature, index=[number]), model)
            assert {key: [rows[number]] for key, rows in together.items()} == alone

    check()


@pytest.mark.parametrize("stop", ["none", "paper"])
def test_the_order_of_the_rows_does_not_matter(stop, tiny_model, make_prompts):
    prompts = make_prompts([5, 30, 12, 1])
    forward = outcome(run(tiny_model, prompts, policies()["filter"], STOPS[stop], temperature=0.7), tiny_model)
    backward = outcome(run(tiny_model, prompts[::-1], policies()["filter"], STOPS[stop], temperature=0.7, index=[3, 2, 1, 0]), tiny_model)
    assert {key: rows[::-1] for key, rows in backward.items()} == forward
