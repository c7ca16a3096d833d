"""A guided policy: somebody else's positions, the known answer's tokens."""

from __future__ import annotations

import pytest

from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.oracle import GuidedPolicy
from learn2pd.policies.threshold import ThresholdPolicy
from tests.contract.helpers import GEN, outcome, policies, run

LENGTHS = [3, 17, 9]


@pytest.fixture
def reference(tiny_model, make_prompts):
    return run(tiny_model, make_prompts(LENGTHS), FixedPolicy()).canvas.clone()


@pytest.mark.parametrize("name", ["threshold0.3", "localleap", "filter", "filter_conv", "filter_transformer"])
def test_it_always_arrives_at_the_known_answer(tiny_model, make_prompts, reference, name):
    state = run(tiny_model, make_prompts(LENGTHS), GuidedPolicy(policies()[name], reference))
    assert state.canvas.equal(reference)
    assert (state.forwards <= GEN).all()


def test_a_policy_guided_to_its_own_answer_does_what_it_does_alone(tiny_model, make_prompts):
    prompts = make_prompts(LENGTHS)
    alone = run(tiny_model, prompts, ThresholdPolicy(0.6))
    guided = run(tiny_model, prompts, GuidedPolicy(ThresholdPolicy(0.6), alone.canvas.clone()))
    assert outcome(guided, tiny_model) == outcome(alone, tiny_model)


def test_it_chooses_the_positions_that_the_policy_would_choose(tiny_model, make_prompts, reference):
    """Committing everything at once takes one forward a block, whatever the tokens are."""
    state = run(tiny_model, make_prompts(LENGTHS), GuidedPolicy(ThresholdPolicy(0.0), reference))
    assert state.committed_at.equal(run(tiny_model, make_prompts(LENGTHS), ThresholdPolicy(0.0)).committed_at)
