"""Policies that take back or overwrite committed tokens, with every scheduler and cache.

A run with such a policy ends, fills the canvas, takes a bounded number of forwards, and decodes every row as alone.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from learn2pd import Commit, EotStop, LeftToRightPolicy, Observer, Policy, ThresholdPolicy, UserError
from tests.contract.helpers import CACHES, GEN, MODELS, SCHEDULERS, Reviser, fits, outcome, run

REVISIONS = 7
PAIRS = [(scheduler, cache) for scheduler in SCHEDULERS for cache in CACHES if fits("threshold", scheduler, cache)]


# The models take turns, so that each of them meets every scheduler, every cache, and both kinds of revision.
CASES = [
    pytest.param(*pair, edits, family, marks=[] if (number + edits) % len(MODELS) == turn else pytest.mark.thorough)
    for number, pair in enumerate(PAIRS)
    for edits in (False, True)
    for turn, family in enumerate(MODELS)
]


@pytest.mark.parametrize(("scheduler", "cache", "edits", "family"), CASES)
def test_revision_ends_fills_is_bounded_and_equals_alone(scheduler, cache, edits, family, make_prompts, request):
    model = request.getfixturevalue(family)
    prompts = make_prompts([3, 17, 9])
    policy = Reviser(0.2, REVISIONS, edits)
    parts = {"scheduler": SCHEDULERS[scheduler], "cache": CACHES[cache]}
    state = run(model, prompts, policy, **parts)
    assert not state.masked.any()
    assert (state.canvas != model.spec.mask_id).all()
    assert (state.forwards <= GEN + REVISIONS).all()
    alone = outcome(run(model, [prompts[1]], policy, index=[1], **parts), model)
    assert {key: [rows[1]] for key, rows in outcome(state, model).items()} == alone


@pytest.mark.parametrize("edits", [False, True], ids=["revoke", "edit"])
def test_what_is_taken_back_is_counted_and_committed_at_is_the_last_commit(edits, tiny_model, make_prompts):
    class Watcher(Observer):
        def __init__(self):
            self.steps = []

        def observe(self, step):
            self.steps.append(step)

    watcher = Watcher()
    state = run(tiny_model, make_prompts([3, 17, 9]), Reviser(0.2, REVISIONS, edits), observer=watcher)
    revoked = sum(step.commit.revoke.sum(1) for step in watcher.steps if step.commit.revoke is not None)
    edited = sum((step.commit.mask & ~step.state.masked).sum(1) for step in watcher.steps)
    assert int((edited if edits else revoked).sum()) > 0
    assert state.edited.tolist() == (edited.tolist() if edits else [0] * 3)
    assert state.revoked.tolist() == ([0] * 3 if edits else revoked.tolist())
    last = torch.full_like(state.committed_at, -1)
    for number, step in enumerate(watcher.steps):
        last = torch.where(step.commit.mask, number, last)
    assert state.committed_at.equal(last)


def test_without_revisions_left_a_revising_policy_is_its_plain_one(tiny_model, make_prompts):
    prompts = make_prompts([3, 17, 9])
    for edits in (False, True):
        spent = outcome(run(tiny_model, prompts, Reviser(0.2, 0, edits)), tiny_model)
        assert spent == outcome(run(tiny_model, prompts, ThresholdPolicy(0.2)), tiny_model)


def test_a_closed_row_stays_closed(tiny_model_grouped, make_prompts):
    ends: list[torch.Tensor] = []

    class Ends(Observer):
        def observe(self, step):
            ends.append(step.after.end)

    run(tiny_model_grouped, make_prompts([1, 5, 9, 14, 20]), Reviser(0.2, 30, False), EotStop(0.0), observer=Ends())
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(ends))
    assert (ends[-1] < GEN).any()


class Outsider(Policy):
    """Takes back what lies before its window, while its revisions last."""

    name = "outsider"
    revisions = REVISIONS

    def select(self, prediction, eligible, state, memory):
        outside = state.decided & ~state.window.mask(state.gen_length)
        return Commit(eligible, revoke=outside & (state.step < self.revisions)[:, None])


def test_a_policy_that_revokes_outside_its_window_may_not_and_is_refused(tiny_model, make_prompts):
    with pytest.raises(UserError, match=r"'outsider'.*revokes what it may not"):
        run(tiny_model, make_prompts([3, 17, 9]), Outsider())


class LeaveOneOut(Policy):
    """Commits two tokens a step from the left and notes the leave-one-out probabilities of what it committed."""

    name = "leave one out"
    needs = frozenset({"leave_one_out"})

    def __init__(self) -> None:
        self.seen: list = []

    def options(self):
        return {}

    def select(self, prediction, eligible, state, memory):
        self.seen.append((state, prediction.extra("leave_one_out")))
        return Commit(eligible & (eligible.cumsum(1) <= 2))


@pytest.mark.parametrize("family", MODELS)
def test_leave_one_out_is_the_probability_of_a_token_that_alone_is_hidden(family, make_prompts, request):
    model = request.getfixturevalue(family)
    prompts = make_prompts([3, 9])
    policy = LeaveOneOut()
    run(model, prompts, policy, gen_length=8)
    checked = 0
    for state, values in policy.seen:
        for row, prompt in enumerate(prompts):
            for position in range(8):
                inside = bool(state.window.mask(8)[row, position])
                if not (inside and state.decided[row, position] and state.open[row]):
                    continue
                expected = _shadow_twin(model, state, row, prompt, position)
                assert float(values[row, position]) == pytest.approx(expected, abs=1e-6)
                checked += 1
    assert checked > 3


def _shadow_twin(model, state, row, prompt, position):
    """One more column behind the row: it sees every column but the original, and nobody sees it."""
    network, shift = model.adapter.network, int(model.spec.shifted_logits)
    tokens = prompt + state.canvas[row].tolist()
    column = len(prompt) + position
    place = column - shift
    extra = tokens[place] if shift else model.spec.mask_id
    length = len(tokens)
    seen = torch.ones(1, length + 1, length + 1, dtype=torch.bool)
    seen[0, :length, length] = False
    seen[0, length, column] = False
    positions = torch.tensor([[*range(length), place]])
    with torch.no_grad():
        hidden = network.hidden(torch.tensor([[*tokens, extra]]), positions, seen)
        logits = network.score(hidden[0, -1:])
    logits[:, model.spec.mask_id] = -torch.inf
    return float(logits.softmax(-1)[0, tokens[column]])


def test_shadow_columns_change_nothing_but_the_count_of_columns(tiny_model, make_prompts):
    prompts = make_prompts([3, 17, 9])
    plain = outcome(run(tiny_model, prompts, LeftToRightPolicy(2), cache=CACHES["dual"]), tiny_model)
    checked = outcome(run(tiny_model, prompts, LeaveOneOut(), cache=CACHES["dual"]), tiny_model)
    assert all(more >= columns for more, columns in zip(checked.pop("columns"), plain.pop("columns"), strict=True))
    assert checked == plain
