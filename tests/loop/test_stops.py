"""Stop rules on hand-made steps of one row of six positions: 9 is end-of-text, -1 a position without a proposal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learn2pd.stops.anywhere import AnywhereStop
from learn2pd.stops.eot import EotStop
from learn2pd.stops.eotp import EotpPaperStop
from learn2pd.stops.none import NoStop
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction

SPEC = ModelSpec(
    name="hand-made",
    mask_id=1,
    eot_ids=(9, 8),
    pad_id=0,
    vocab_size=400,
    max_length=512,
    shifted_logits=False,
    fingerprint="",
)


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


@pytest.mark.parametrize("floor", [-0.1, 1.5, float("nan")])
def test_a_floor_that_is_no_confidence_is_refused(floor):
    with pytest.raises(ValueError, match="floor="):
        EotStop(floor)
