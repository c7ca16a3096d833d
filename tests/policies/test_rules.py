"""Commit rules against the same rules as one would write them down, row by row."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd import FactorPolicy, LeftToRightPolicy, LocalLeapPolicy, ThresholdPolicy
from learn2pd.types import Prediction

levels = st.sampled_from([0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 0.9375, 1.0])  # ties are the rule; all exact in float32
rows = st.lists(st.tuples(levels, st.booleans()), min_size=1, max_size=10)


def select(policy, row):
    confidence, eligible = (torch.tensor([column]) for column in zip(*row, strict=True))
    prediction = Prediction(torch.zeros_like(eligible, dtype=torch.long), confidence.float(), eligible)
    return set(policy.select(prediction, eligible, None, None).mask[0].nonzero()[:, 0].tolist())


def ranked(row):
    return sorted((place for place, (_, eligible) in enumerate(row) if eligible), key=lambda place: -row[place][0])


@given(row=rows, factor=st.sampled_from([0.2, 0.5, 1.0, 1.5]))
def test_factor_takes_ranks_until_the_first_that_is_not_sure_enough(row, factor):
    taken = []
    for rank, place in enumerate(ranked(row), start=1):
        if rank > 1 and row[place][0] < torch.tensor(1 - factor / (rank + 1)).item():
            break
        taken.append(place)
    assert select(FactorPolicy(factor), row) == set(taken)


@given(row=rows, factor=st.sampled_from([0.2, 0.5, 1.0, 1.5]))
def test_the_quirk_of_factor_adds_the_last_candidate_and_nothing_else(row, factor):
    plain, quirky = (select(FactorPolicy(factor, reference_quirks=quirks), row) for quirks in (False, True))
    candidates = ranked(row)
    assert quirky == (set(candidates) if len(plain) == len(candidates) - 1 else plain)


@given(row=rows, radius=st.integers(0, 4), relaxed=st.sampled_from([0.25, 0.5, 0.75]))
def test_localleap_relaxes_near_what_is_certain(row, radius, relaxed):
    anchors = [place for place, (confidence, eligible) in enumerate(row) if eligible and confidence >= 0.875]
    wanted = {
        place
        for place, (confidence, eligible) in enumerate(row)
        if eligible and (place in anchors or (confidence >= relaxed and any(abs(place - anchor) <= radius for anchor in anchors)))
    }
    assert select(LocalLeapPolicy(0.875, relaxed, radius), row) == wanted


@given(row=rows, threshold=st.sampled_from([0.5, 0.875]))
def test_one_more_adds_the_surest_of_those_below_the_threshold(row, threshold):
    accepted = {place for place in ranked(row) if row[place][0] >= threshold}
    rest = [place for place in ranked(row) if place not in accepted]
    assert select(ThresholdPolicy(threshold), row) == accepted
    assert select(ThresholdPolicy(threshold, one_more=True), row) == accepted | set(rest[:1])


@given(row=rows, tokens=st.integers(1, 4))
def test_left_to_right_takes_the_leftmost(row, tokens):
    assert select(LeftToRightPolicy(tokens), row) == set(sorted(ranked(row))[:tokens])
