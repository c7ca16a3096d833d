"""Options of the later rules that are out of range are refused in one line that names the option and its value."""

from __future__ import annotations

import pytest

from learn2pd import UserError
from learn2pd.registry import COMPONENTS, build

WRONG = {
    "entropy_bound": [("bound", -0.1), ("bound", float("nan"))],
    "dparallel": [("threshold", -1.0), ("threshold", float("inf"))],
    "klass": [("threshold", 1.5), ("kl_threshold", -1.0), ("history", 0), ("strategy", "some"), ("steps", 0)],
    "hierarchical": [("threshold", 1.1), ("low_threshold", 0.95), ("remask_threshold", 2.0)],
    "credit": [("threshold", -0.1), ("weight", -1.0), ("boost", float("inf")), ("decay", 1.5)],
    "slowfast": [("threshold", 2.0), ("sight", -1.0), ("exploration", 1), ("stability", 1), ("deviation", -1.0)],
    "prophet": [("early", -1.0), ("middle", -1.0), ("late", -1.0), ("answer_start", 1.0), ("steps", 0)],
    "dawn": [("threshold", 2.0), ("induced_threshold", 2.0), ("low_threshold", -1.0), ("sink", 2.0), ("edge", 0.0)],
    "mean_field": [("threshold", 1.0), ("interaction", -1.0), ("rounds", 0), ("top", 0)],
    "wino": [("threshold", 1.1), ("threshold_back", -0.1)],
    "edit": [("threshold", 2.0), ("editing_threshold", -1.0), ("max_post_steps", -1), ("tokens_per_step", 0)],
    "remask": [("remask_threshold", 2.0), ("per_position", -1), ("share", 1.5), ("max_post_steps", -1)],
}


@pytest.mark.parametrize(
    ("name", "option", "value"), [(name, *wrong) for name, options in WRONG.items() for wrong in options]
)
def test_an_option_out_of_range_is_refused(name, option, value):
    with pytest.raises(UserError) as error:
        build("policy", name, {option: value}, {})
    assert f"{option}={value!r}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_says_how_to_build_it_again(name):
    policy = build("policy", name, {}, {})
    again = build("policy", name, policy.describe(), {})
    assert again.fingerprint == policy.fingerprint
    assert name in COMPONENTS["policy"]
