from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd import FixedPolicy, LeftToRightPolicy, LocalLeapPolicy, Policy, ThresholdPolicy
from learn2pd.tensors import most_confident


@given(data=st.data())
def test_the_most_confident_are_those_a_stable_sort_puts_first(data):
    levels = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # ties are the rule
    confidence = data.draw(st.lists(levels, min_size=1, max_size=8))
    eligible = data.draw(st.lists(st.booleans(), min_size=len(confidence), max_size=len(confidence)))
    count = data.draw(st.integers(1, 9))
    ranked = sorted(
        (position for position, allowed in enumerate(eligible) if allowed), key=lambda position: -confidence[position]
    )
    for quota in (count, torch.tensor([count])):
        mask = most_confident(torch.tensor([confidence]), torch.tensor([eligible]), quota)
        assert mask[0].nonzero()[:, 0].tolist() == sorted(ranked[:count])


def test_an_option_with_the_name_of_a_method_is_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match="option 'start' has the name of a method"):

        class Bad(Policy):
            def __init__(self, start: float) -> None:
                self.begin = start


@pytest.mark.parametrize("policy", [ThresholdPolicy(0.5), FixedPolicy(3), LocalLeapPolicy(), LeftToRightPolicy(2)])
def test_a_policy_says_how_to_build_it_again(policy):
    again = type(policy)(**policy.options())
    assert repr(again) == repr(policy)
    assert again.fingerprint == policy.fingerprint
    assert len(repr(policy)) < 80
