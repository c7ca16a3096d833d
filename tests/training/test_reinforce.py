"""Reinforcement: what is rewarded, what is recorded, and that commits which earn more become likelier."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.cli.config import load_config
from learn2pd.cli.stages import run_stages
from learn2pd.decoding import decode
from learn2pd.errors import UserError
from learn2pd.loop.observing import Observer
from learn2pd.method import Method
from learn2pd.schedulers.blocks import BlocksScheduler
from learn2pd.training.reinforce import (
    ActionRecorder,
    Actions,
    Reinforcement,
    ReinforceRecipe,
    Rollouts,
    SampledFilter,
    advantages,
    commit_log_odds,
    reinforce,
    rewards,
)
from tests.contract.helpers import BLOCK, random_predictor

GEN = 3 * BLOCK
RECIPE = ReinforceRecipe(iterations=1, prompts=3, answers=4, alpha=2.0, learning_rate=0.02, validate_every=1)


@pytest.fixture(scope="module")
def prompts(make_prompts):
    return make_prompts([5, 3, 9, 6, 4], seed=0)


def predictor_of(name="transformer"):
    return replace(copy.deepcopy(random_predictor(name=name)), threshold=0.6)


def fast_wins(result):
    """Judge every answer as right, so that only speed is rewarded."""
    return np.ones(len(result.tokens))


def rollouts_of(model, prompts, predictor, recipe, judge):
    """Rollouts on the tiny model. `judge` makes 0 or 1 of every answer of a result."""

    def some(numbers, policy, observer, seed):
        ids = [prompts[number] for number in numbers]
        method = Method(policy, BlocksScheduler(BLOCK))
        result = decode(model, ids, method, gen_length=GEN, observer=observer, seed=seed)
        return result, judge(result)

    def everything(policy):
        return some(range(len(prompts)), policy, Observer(), 0)

    module = Reinforcement(predictor.network, predictor.threshold, recipe)
    return Rollouts(module, predictor, some, everything, len(prompts), GEN)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, GEN)), min_size=1, max_size=20),
    st.floats(0, 8),
)
def test_a_wrong_answer_earns_nothing_and_a_faster_right_one_never_less(answers, alpha):
    correct = np.array([right for right, _ in answers], float)
    forwards = np.array([count for _, count in answers])
    earned = rewards(correct, forwards, GEN, alpha)
    for (right, count), reward in zip(answers, earned.tolist(), strict=True):
        assert reward == pytest.approx(right * ((GEN - count + 1) / GEN) ** alpha)
    assert ((earned >= 0) & (earned <= 1)).all()


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=12, max_size=12))
def test_an_advantage_is_what_an_answer_earns_above_its_group(earned):
    groups = torch.tensor(earned).view(3, 4)
    for group, group_advantage in zip(groups, advantages(torch.tensor(earned), 4).view(3, 4), strict=True):
        if (group == group[0]).all():
            assert group_advantage.isnan().all()
        else:
            assert torch.allclose(group_advantage, group - group.mean())


@given(st.floats(-12, 12), st.floats(0.01, 0.99), st.floats(0.05, 5))
def test_an_even_chance_lies_at_the_threshold(logit, threshold, spread):
    chance = commit_log_odds(torch.tensor(logit), threshold, spread).sigmoid()
    distance = logit - float(torch.tensor(threshold).logit())
    if abs(distance) > 1e-3 * spread:
        assert (chance > 0.5) == (distance > 0)


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_a_row_draws_the_same_alone_and_in_a_batch(tiny_model, prompts, name):
    policy = SampledFilter(predictor_of(name), 1.0)
    method = Method(policy, BlocksScheduler(BLOCK))
    together = decode(tiny_model, prompts, method, gen_length=GEN, seed=3)
    alone = decode(tiny_model, prompts[:1], method, gen_length=GEN, seed=3)
    assert (together.tokens[0] == alone.tokens[0]).all()
    assert together.forwards[0] == alone.forwards[0]
    others = decode(tiny_model, [prompts[2]] * 8, method, gen_length=GEN, seed=3)
    assert len(others.committed_at.unique(dim=0)) > 1  # the answers of one prompt differ in their draws


@pytest.mark.parametrize("name", ["mlp", "conv", "transformer"])
def test_recorded_steps_are_those_that_were_decoded(tiny_model, prompts, name):
    """What is replayed from the recording has the probability of what the policy drew, step by step."""
    predictor = predictor_of(name)
    policy = SampledFilter(predictor, 1.0)
    recorder = ActionRecorder(policy)
    drawn = []

    class Draws(SampledFilter):
        def accepts(self, final, state):
            accepted = super().accepts(final, state)
            drawn.append((final, accepted, state))
            return accepted

    method = Method(Draws(predictor, 1.0), BlocksScheduler(BLOCK))
    result = decode(tiny_model, prompts[:1], method, gen_length=GEN, observer=recorder, seed=1)
    actions = recorder.actions(torch.ones(1))
    assert len(actions.advantage) == int(result.forwards[0]) == len(drawn)
    module = Reinforcement(predictor.network, predictor.threshold, replace(RECIPE, spread=1.0))
    log_probability = module.log_probability(actions)
    for step, (final, accepted, state) in enumerate(drawn):
        start, stop = int(state.window.start[0]), int(state.window.stop[0])
        expected = 0.0
        for place in range(start, stop):
            if not state.masked[0, place]:
                continue
            chance = float(commit_log_odds(final[0, place].logit(1e-7), 0.6, 1.0).sigmoid())
            expected += np.log(chance if accepted[0, place] else 1 - chance)
        assert log_probability[step].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_probabilities_of_all_draws_add_up_to_one():
    predictor = predictor_of()
    width = 4
    outcomes = torch.tensor(list(itertools.product([False, True], repeat=width)))
    count = len(outcomes)
    torch.manual_seed(0)
    inputs = torch.randn(1, width, len(predictor.network.channels)).expand(count, -1, -1)
    shown = torch.ones(count, width, dtype=torch.bool)
    actions = Actions(inputs, shown, shown.long(), shown, outcomes, torch.ones(count), torch.zeros(count))
    module = Reinforcement(predictor.network, predictor.threshold, RECIPE)
    assert module.log_probability(actions).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_filter_that_is_paid_for_speed_becomes_faster(tiny_model, prompts, tmp_path):
    predictor = predictor_of()
    recipe = replace(RECIPE, iterations=4)
    figures = reinforce(rollouts_of(tiny_model, prompts, predictor, recipe, fast_wins), tmp_path)
    assert figures["iteration"] > 0
    assert figures["after"]["reward"] > figures["before"]["reward"]
    assert figures["after"]["tokens_per_forward"] > figures["before"]["tokens_per_forward"]


def test_a_filter_that_nothing_teaches_stays_as_it_was(tiny_model, prompts, tmp_path):
    predictor = predictor_of()
    before = copy.deepcopy(predictor.network.state_dict())
    rollouts = rollouts_of(tiny_model, prompts, predictor, RECIPE, lambda result: np.zeros(len(result.tokens)))
    figures = reinforce(rollouts, tmp_path)
    assert figures["iteration"] == 0
    assert all((before[name] == values).all() for name, values in predictor.network.state_dict().items())


def test_a_reinforcement_that_was_stopped_ends_like_one_that_was_not(tiny_model, prompts, tmp_path):
    ends = []
    for stops in ((2,), (1, 2)):
        predictor = predictor_of()
        start = copy.deepcopy(predictor.network.state_dict())
        for iterations in stops:
            predictor.network.load_state_dict(start)  # a new process begins with the filter, and not with its changes
            recipe = replace(RECIPE, iterations=iterations)
            rollouts = rollouts_of(tiny_model, prompts, predictor, recipe, fast_wins)
            figures = reinforce(rollouts, tmp_path / str(len(ends)))
        ends.append((predictor.network.state_dict(), figures))
    assert ends[0][1] == ends[1][1]
    assert all((ends[0][0][name] == values).all() for name, values in ends[1][0].items())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ([], ["policy=FOLDER"]),
        (["reinforce.answers=1"], ["reinforce.answers=1", "2"]),
        (["policy=checkpoints/tiny-llada-filter", "data.train_prompts=3"], ["reinforce.prompts=16", "3"]),
        (["policy=checkpoints/tiny-llada-filter", "data.validation_prompts=0"], ["validation"]),
        (
            [
                "policy=checkpoints/tiny-llada-filter",
                "data.source=jsonl",
                "data.path=QUESTIONS",
                "data.prompt_field=prompt",
            ],
            ["no checker"],
        ),
        (["policy=checkpoints/nowhere"], ["checkpoints/nowhere"]),
    ],
)
def test_what_cannot_be_reinforced_is_refused_before_anything_runs(overrides, named, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"prompt": "What is {n}?"}}\n' for n in range(200)))
    arguments = [part.replace("QUESTIONS", str(questions)) for part in overrides]
    with pytest.raises(UserError) as caught:
        run_stages(
            load_config(None, ["stages=[reinforce]", "data.tasks=[math]", f"output_dir={tmp_path / 'run'}", *arguments])
        )
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in named)
    assert not (tmp_path / "run" / "reinforced").exists()
