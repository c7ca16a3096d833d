"""A comparison tells the policies that know the answers what they must know."""

from __future__ import annotations

import pytest

from learn2pd import Policy, UserError
from learn2pd.cli.config import MethodConfig, load_config
from learn2pd.cli.stages.comparison_methods import check_comparison
from learn2pd.cli.stages.comparison_outcomes import compare_outcomes
from learn2pd.cli.stages.components import checkers_of, usable_prompts
from learn2pd.types import Commit

SMALL = ["data.tasks=[math]", "data.test_prompts=3", "decode.gen_length=16", "decode.block_length=8"]
OWN = "tests.evaluation.test_informed:WholeWindows"


class WholeWindows(Policy):
    """A policy of a user's own: it writes the known answer, a window a step."""

    name = "whole_windows"
    knows_answer = True

    def __init__(self, reference):
        self.reference = reference

    def select(self, prediction, eligible, state, memory):
        return Commit(eligible, tokens=self.reference.to(eligible.device)[state.index])


def compared(*methods):
    """A small comparison of methods, which are given as (name, policy, options)."""
    config = load_config("tiny_compare", SMALL)
    config.compare.methods = [MethodConfig(name, policy, options=options) for name, policy, options in methods]
    return config


def test_every_policy_that_knows_the_answers_receives_them(tiny_model, tmp_path):
    labels = ("continuation", "checked", "checked_together")
    config = compared(
        ("vanilla", "fixed", {}),
        ("oracle", "oracle", {}),
        ("own", OWN, {}),
        ("search", "search", {}),
        *((name, "label_oracle", {"labels": name}) for name in labels),
    )
    check_comparison(config, tiny_model, tmp_path, trains=False)
    prompts = [prompt for prompt in usable_prompts(config, tiny_model) if prompt.split == "test"]
    outcomes = compare_outcomes(config, tmp_path, tiny_model, prompts, checkers_of(config, prompts))
    of = {outcome.labels.method: outcome for outcome in outcomes if outcome.labels.task == "all"}
    assert {name: outcome.labels.kind for name, outcome in of.items()} == {"vanilla": "training-free"} | dict.fromkeys(
        ("oracle", "own", "search", *labels), "oracle"
    )
    for name in ("oracle", "own"):
        assert (of[name].tokens == of["vanilla"].tokens).all()
    for name in ("search", *labels):
        assert of[name].auxiliary_forwards.sum() > 0
    assert of["own"].forwards.tolist() <= of["oracle"].forwards.tolist()
    assert max(of["own"].forwards) <= 2


def test_a_policy_that_knows_the_answers_needs_one_token_a_step_at_the_head(tiny_model, tmp_path):
    for policy in ("oracle", OWN):
        config = compared(("rule", "threshold", {}), ("knowing", policy, {}), ("vanilla", "fixed", {}))
        with pytest.raises(UserError, match=f"{policy!r} needs a method with policy 'fixed' at the head"):
            check_comparison(config, tiny_model, tmp_path, trains=False)
