"""Tokens that the caller gives, and sets of ids that a position may hold: every method respects both."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from learn2pd import Commit, EotFilledStop, EotStop, Method, NoCache, Policy, TextStop, UserError
from learn2pd.continuing import Continuer
from learn2pd.decoding import answer_lengths
from learn2pd.predictors.end_of_text import LearnedStop
from learn2pd.stops.anywhere import AnywhereStop
from learn2pd.stops.eotp import EotpPaperStop
from tests.contract.helpers import (
    CACHES,
    COMBINATIONS,
    GEN,
    MODELS,
    SCHEDULERS,
    STOPS,
    covering_part,
    oracle,
    outcome,
    policies,
    random_predictor,
    run,
)

LENGTHS = [3, 17, 9]
CASES = [
    combination for number, combination in enumerate(COMBINATIONS) if combination[0] != "oracle" and number % 5 == 0
]


def given_tokens(rows: int, seed: int) -> torch.Tensor:
    """Some fixed tokens anywhere in the canvas, in every row other ones; the last row has none."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(10, 300, (rows, GEN), generator=generator)
    fixed = torch.rand(rows, GEN, generator=generator) < 0.4
    fixed[-1] = False
    return torch.where(fixed, tokens, -1)


@pytest.mark.parametrize(("policy", "scheduler", "cache"), covering_part(CASES))
def test_given_tokens_and_allowed_ids_hold_and_rows_stay_independent(policy, scheduler, cache, make_prompts, request):
    number = CASES.index((policy, scheduler, cache))
    model = request.getfixturevalue(MODELS[number % len(MODELS)])
    prompts = make_prompts(LENGTHS, seed=number)
    given = given_tokens(len(LENGTHS), number)
    allowed = torch.full((len(LENGTHS), GEN, 3), -1)
    allowed[:, ::3] = torch.tensor([11, 12, 13])
    stop = list(STOPS.values())[number % len(STOPS)]
    parts = {"scheduler": SCHEDULERS[scheduler], "cache": CACHES[cache], "stop": stop}
    state = run(model, prompts, policies()[policy], given=given, allowed=allowed, **parts)
    assert (state.canvas == given)[given >= 0].all()
    assert not state.masked.any()
    committed = state.committed_at >= 0
    assert not (committed & (given >= 0)).any()
    restricted = committed.clone()
    restricted[:, [column for column in range(GEN) if column % 3]] = False
    assert torch.isin(state.canvas[restricted], torch.tensor([11, 12, 13])).all()
    alone = outcome(
        run(model, [prompts[0]], policies()[policy], index=[0], given=given[:1], allowed=allowed[:1], **parts), model
    )
    assert {key: [rows[0]] for key, rows in outcome(state, model).items()} == alone


def test_nothing_given_and_nothing_restricted_changes_nothing(tiny_model, make_prompts):
    prompts = make_prompts(LENGTHS)
    plain = outcome(run(tiny_model, prompts, policies()["threshold0.6"]), tiny_model)
    given = torch.full((len(LENGTHS), GEN), -1)
    allowed = torch.full((len(LENGTHS), GEN, 2), -1)
    assert (
        outcome(run(tiny_model, prompts, policies()["threshold0.6"], given=given, allowed=allowed), tiny_model) == plain
    )


def test_a_canvas_that_is_given_whole_takes_no_forward(tiny_model, make_prompts):
    given = torch.full((1, GEN), 7)
    state = run(tiny_model, make_prompts([4]), policies()["fixed"], given=given)
    assert state.canvas.equal(given)
    assert state.forwards.tolist() == [0]


def test_the_oracle_leaves_given_tokens_alone(tiny_model, make_prompts):
    prompts = make_prompts(LENGTHS)
    given = given_tokens(len(LENGTHS), 5)
    state = run(tiny_model, prompts, oracle(tiny_model, prompts), given=given)
    assert (state.canvas == given)[given >= 0].all()


class Overwriter(Policy):
    """Overwrites or takes back what the caller gave in its window, while its revisions last."""

    name = "overwriter"
    revisions = 5

    def __init__(self, revokes: bool) -> None:
        self.revokes = revokes

    def select(self, prediction, eligible, state, memory):
        touched = state.given & state.window.mask(state.gen_length) & (state.step < self.revisions)[:, None]
        return Commit(eligible, revoke=touched) if self.revokes else Commit(eligible | touched)


@pytest.mark.parametrize("revokes", [False, True], ids=["overwrite", "revoke"])
def test_a_policy_that_overwrites_or_revokes_a_given_token_is_refused(revokes, tiny_model, make_prompts):
    with pytest.raises(UserError, match=r"'overwriter'.*may not"):
        run(tiny_model, make_prompts(LENGTHS), Overwriter(revokes), given=given_tokens(len(LENGTHS), 5))


def gap_and_open_end(model, ends):
    """A gap of six positions, two given tokens and an open end; the model may write end-of-text at `ends` alone."""
    given = torch.full((1, GEN), -1)
    given[0, 6:8] = torch.tensor([50, 60])
    allowed = torch.tensor([11, 12, 13]).expand(1, GEN, 3).clone()
    allowed[:, list(ends)] = model.spec.eot_ids[0]
    return given, allowed


NEVER = dataclasses.replace(random_predictor("end_of_text", "conv"), threshold=1.0)
ENDINGS = [
    EotStop(0.0),
    EotFilledStop(),
    EotFilledStop(whole_window=False),
    AnywhereStop(),
    EotpPaperStop(),
    TextStop("no such text"),
    LearnedStop(NEVER),
]


@pytest.mark.parametrize("policy", ["fixed", "threshold0.3"])
@pytest.mark.parametrize("stop", ENDINGS, ids=repr)
def test_an_end_of_text_in_a_gap_ends_no_row_and_the_first_one_behind_it_does(stop, policy, tiny_model, make_prompts):
    prompts = make_prompts([5])
    eot = tiny_model.spec.eot_ids[0]
    for behind in ((), (12,)):
        given, allowed = gap_and_open_end(tiny_model, (3, *behind))
        state = run(tiny_model, prompts, policies()[policy], stop, given=given, allowed=allowed)
        assert state.canvas[0, 3] == eot
        assert bool((state.end < GEN).all()) == bool(behind)
        assert answer_lengths(state.canvas, (eot,), given >= 0).tolist() == [12 if behind else GEN]


def test_a_continued_canvas_goes_on_behind_a_gap_that_ended(tiny_model, make_prompts):
    given, _ = gap_and_open_end(tiny_model, ())
    canvas = given.clone()
    canvas[0, 3] = tiny_model.spec.eot_ids[0]
    method = Method(policies()["fixed"], SCHEDULERS["blocks"], NoCache(), EotStop(0.0))
    continuer = Continuer(tiny_model, make_prompts([5]), method, GEN, 1, given)
    number = torch.tensor([0])
    _, forwards = continuer(number, canvas)
    canvas[0, 12] = canvas[0, 3]
    ended, fewer = continuer(number, canvas)
    assert int(forwards) > int(fewer)
    assert (ended[0, 12:] == canvas[0, 3]).all()
