"""An observer that asks for more proposals than the method needs changes no answer."""

from __future__ import annotations

import pytest

from learn2pd import Observer
from tests.contract.helpers import (
    CACHES,
    COMBINATIONS,
    MODELS,
    SCHEDULERS,
    STOPS,
    covering_part,
    oracle,
    outcome,
    policies,
    run,
)
from tests.contract.test_fixed_tokens import given_tokens

LENGTHS = [3, 17, 9]
# every policy and scheduler without a cache, and some of the combinations with one
CASES = [case for number, case in enumerate(COMBINATIONS) if case[2] == "none" or number % 9 == 0]


class Asks(Observer):
    """Asks for every proposal that there is."""

    scores_committed = True
    looks_ahead = True


@pytest.mark.parametrize(("policy", "scheduler", "cache"), covering_part(CASES))
def test_an_observer_changes_no_answer(policy, scheduler, cache, make_prompts, request):
    number = CASES.index((policy, scheduler, cache))
    model = request.getfixturevalue(MODELS[number % len(MODELS)])
    prompts = make_prompts(LENGTHS, seed=number)
    tried = oracle(model, prompts) if policy == "oracle" else policies()[policy]
    options = {
        "scheduler": SCHEDULERS[scheduler],
        "cache": CACHES[cache],
        "stop": list(STOPS.values())[number % len(STOPS)],
        "given": given_tokens(len(LENGTHS), number),
    }
    plain, observed = (run(model, prompts, tried, observer=observer, **options) for observer in (None, Asks()))
    assert outcome(observed, model) == outcome(plain, model)
