"""Stop rules on hand-made steps of one row: 9 is end-of-text, -1 a position without a proposal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learn2pd.predictors.end_of_text import Ended, LearnedStop
from learn2pd.predictors.saving import Contract, Predictor
from learn2pd.registry import COMPONENTS
from learn2pd.stops.anywhere import AnywhereStop
from learn2pd.stops.eot import EotStop
from learn2pd.stops.eot_filled import EotFilledStop
from learn2pd.stops.eotp import EotpPaperStop
from learn2pd.stops.none import NoStop
from learn2pd.stops.text import TextStop
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, Window

SPEC = ModelSpec(
    name="hand-made",
    mask_id=1,
    eot_ids=(9, 8),
    pad_id=0,
    vocab_size=400,
    max_length=512,
    shifted_logits=False,
    fingerprint="",
    text_of=lambda tokens: "".join("x" if token == 6 else "." for token in tokens),
)
ORDINARY = 4


def end(stop, proposed, confidence, committed, forced=(), before=6, tokens=None):
    """The position at which a stop rule ends a row of six tokens, given what is proposed and committed in a step."""
    state = DecodeState.start([[5, 5]], 6, SPEC)
    state = replace(state, end=torch.tensor([before]), masked=state.masked & (torch.arange(6) < before))
    ids = torch.tensor([proposed])
    mask, held = (
        torch.isin(torch.arange(6), torch.tensor(positions, dtype=torch.long))[None]
        for positions in (list(committed), list(forced))
    )
    commit = Commit(mask, tokens=None if tokens is None else torch.tensor([tokens]), forced=held if forced else None)
    return int(stop.ends(state, Prediction(ids, torch.tensor([confidence]), ids >= 0), commit, stop.start(state, SPEC)))


FOUND = [4, 4, 9, 4, 8, 9]
SURE = [0.9, 0.9, 0.4, 0.9, 0.6, 0.9]


def test_without_a_rule_nothing_ends():
    assert end(NoStop(), FOUND, SURE, range(6)) == 6


@pytest.mark.parametrize(
    ("floor", "committed", "wanted"),
    [(0.0, range(6), 3), (0.5, range(6), 5), (0.7, range(6), 6), (0.5, [0, 2], 6), (0.4, [0, 5], 6)],
)
def test_a_row_ends_after_the_first_committed_end_of_text_that_reaches_the_floor(floor, committed, wanted):
    assert end(EotStop(floor), FOUND, SURE, committed) == wanted


def test_an_end_never_moves_back():
    assert end(EotStop(0.5), [9] * 6, SURE, [4], before=3) == 3
    assert end(EotpPaperStop(), [4] * 6, SURE, [0], before=3) == 3


def test_tokens_that_the_policy_wrote_count_and_not_the_proposals():
    assert end(EotStop(0.0), [9] * 6, SURE, range(6), tokens=[4, 4, 4, 9, 4, 4]) == 4


def test_tokens_that_the_policy_wrote_need_no_confidence():
    """An oracle that pastes the answer knows where it ends, whatever the model thought there."""
    assert end(EotStop(0.9), [4] * 6, [0.1] * 6, range(6), tokens=[4, 4, 4, 9, 4, 4]) == 4


def test_the_paper_cuts_after_the_leftmost_end_of_text_that_the_filter_accepted():
    assert end(EotpPaperStop(), FOUND, SURE, [2, 4]) == 3


def test_the_paper_does_not_take_a_forced_commit_for_an_accepted_one():
    assert end(EotpPaperStop(), FOUND, SURE, [2], forced=[2]) == 6
    assert end(EotpPaperStop(), FOUND, SURE, [2, 4], forced=[2]) == 5


def test_the_paper_else_cuts_after_the_most_confident_end_of_text_wherever_it_is_and_however_faint():
    assert end(EotpPaperStop(), [4, 9, 4, 9, 4, 4], [0.9, 0.01, 0.9, 0.02, 0.9, 0.9], [0]) == 4
    assert end(EotpPaperStop(), [4, 9, 4, -1, 4, 4], [0.9, 0.01, 0.9, 0.0, 0.9, 0.9], [0]) == 2


@pytest.mark.parametrize(
    ("committed", "wanted"), [(range(3), 3), (range(4), 4), ([0, 1], 6), ([2], 3), ([2, 3, 5], 4), (range(6), 6)]
)
def test_anywhere_cuts_before_the_first_mask_behind_an_end_of_text_and_never_before_it(committed, wanted):
    assert end(AnywhereStop(), FOUND, SURE, committed) == wanted


@pytest.mark.parametrize(("taken_back", "wanted"), [(False, 3), (True, 6)])
def test_an_answer_is_not_filled_where_the_same_step_takes_a_position_back(taken_back, wanted):
    first = torch.arange(6)[None] == 0
    state = DecodeState.start([[5, 5]], 6, SPEC)
    state = replace(state, masked=torch.arange(6)[None] >= 2)
    prediction = Prediction(torch.tensor([FOUND]), torch.tensor([SURE]), state.masked)
    commit = Commit(torch.arange(6)[None] == 2, revoke=first if taken_back else None)
    assert int(EotFilledStop(whole_window=False).ends(state, prediction, commit, None)) == wanted


@pytest.mark.parametrize("floor", [-0.1, 1.5, float("nan")])
def test_a_floor_that_is_no_confidence_is_refused(floor):
    with pytest.raises(ValueError, match="floor="):
        EotStop(floor)


def learned(threshold):
    """The trained rule. With a threshold of -1 it thinks everywhere that the answer has ended, and with 1 nowhere."""
    contract = Contract(mask_id=1, vocab_size=400, eot_ids=SPEC.eot_ids)
    return LearnedStop(Predictor("end_of_text", Ended.network(), threshold, contract))


RULES = [
    NoStop(),
    EotStop(0.0),
    EotStop(0.5),
    EotFilledStop(),
    EotFilledStop(whole_window=False),
    AnywhereStop(),
    EotpPaperStop(),
    EotpPaperStop(accepted=False),
    TextStop("x", 0.5),
    learned(-1.0),
    learned(1.0),
]


def test_the_rules_below_are_all_rules():
    assert {rule.name for rule in RULES} == set(COMPONENTS["stop"])


@st.composite
def steps(draw):
    """A state in which some tokens were given and some committed, with what is proposed and committed there."""
    size = 8
    given_at, masked, committed = (
        torch.tensor([draw(st.lists(st.booleans(), min_size=size, max_size=size))]) for _ in range(3)
    )
    masked = masked & ~given_at
    tokens = st.lists(st.sampled_from([ORDINARY, 6, 9]), min_size=size, max_size=size)
    canvas, proposed, own = (torch.tensor([draw(tokens)]) for _ in range(3))
    sure = st.lists(st.sampled_from([0.2, 0.4, 0.6, 0.8]), min_size=size, max_size=size)
    state = DecodeState.start([[5, 5]], size, SPEC)
    state = replace(
        state,
        tokens=torch.cat((state.tokens[:, :2], torch.where(masked, SPEC.mask_id, canvas)), dim=1),
        masked=masked,
        given=given_at,
        window=Window(torch.tensor([0]), torch.tensor([draw(st.integers(1, size))])),
    )
    prediction = Prediction(proposed, torch.tensor([draw(sure)]), masked)
    return state, prediction, Commit(committed & masked, tokens=own if draw(st.booleans()) else None)


def with_ordinary_tokens(tokens, before):
    """The same tokens, but for end-of-texts at the positions `before`, in whose place an ordinary token stands."""
    return tokens.masked_fill(before & (tokens == 9), ORDINARY)


@pytest.mark.parametrize("stop", RULES, ids=repr)
@settings(max_examples=30)
@given(step=steps())
def test_an_end_of_text_before_a_given_token_is_to_every_rule_an_ordinary_token(stop, step):
    """Given tokens too may be end-of-text. The first end-of-text behind the last given token ends the row."""
    state, prediction, commit = step
    last = max([position for position in range(8) if state.given[0, position]], default=-1)
    before = torch.arange(8)[None] <= last
    plain = (
        replace(state, tokens=with_ordinary_tokens(state.tokens, torch.cat((torch.zeros(1, 2) > 0, before), dim=1))),
        replace(prediction, tokens=with_ordinary_tokens(prediction.tokens, before)),
        commit if commit.tokens is None else replace(commit, tokens=with_ordinary_tokens(commit.tokens, before)),
    )
    assert stop.ends(*step, stop.start(state, SPEC)).equal(stop.ends(*plain, stop.start(state, SPEC)))
