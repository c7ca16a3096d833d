"""Commit rules against the same rules written down, on hand-made confidences with many ties."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.loop.commits import at_least_one
from learn2pd.policies.apd import LeftToRightPolicy
from learn2pd.policies.entropy_sum import EntropySumPolicy
from learn2pd.policies.factor import FactorPolicy
from learn2pd.policies.fixed import FixedPolicy
from learn2pd.policies.localleap import LocalLeapPolicy
from learn2pd.policies.low_confidence import LowConfidencePolicy
from learn2pd.policies.oracle import OraclePolicy, Reference
from learn2pd.policies.prophet import ProphetPolicy
from learn2pd.policies.threshold import ThresholdPolicy
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction
from tests.parity.quirks import LastRankFactor
from tests.reference import rules

SPEC = ModelSpec("hand-made", 1, (9,), 0, 400, 512, False, "")
LEVELS = [0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 0.9375, 1.0]  # ties are the rule; all exact in float32
levels = st.sampled_from(LEVELS)
positions_drawn = st.tuples(levels, st.booleans())  # the confidence of a position, and whether it is eligible
rows = st.lists(positions_drawn, min_size=1, max_size=10)
factors = st.sampled_from([0.2, 0.5, 1.0, 1.5])


def prediction_of(row):
    """What the policies are given: proposals and the positions that are eligible."""
    confidence, eligible = (torch.tensor([column]) for column in zip(*row, strict=True))
    return Prediction(torch.zeros_like(eligible, dtype=torch.long), confidence.float(), eligible), eligible


def positions(mask):
    """The positions of the first row of a mask."""
    return set(mask[0].nonzero()[:, 0].tolist())


def select(policy, row):
    """The positions that a policy commits in a row of confidences."""
    prediction, eligible = prediction_of(row)
    return positions(policy.select(prediction, eligible, None, None).mask)


def candidates_of(row):
    """The confidences of the eligible positions of a row, by position."""
    return {position: confidence for position, (confidence, eligible) in enumerate(row) if eligible}


@given(row=rows, factor=factors)
def test_factor_takes_ranks_until_the_first_that_is_not_sure_enough(row, factor):
    assert select(FactorPolicy(factor), row) == rules.factor(factor)(candidates_of(row))


@given(row=rows, factor=factors)
def test_the_quirk_of_factor_adds_the_last_candidate_and_nothing_else(row, factor):
    plain, quirky = (select(policy(factor), row) for policy in (FactorPolicy, LastRankFactor))
    candidates = set(candidates_of(row))
    assert quirky == (candidates if len(plain) == len(candidates) - 1 else plain)


@given(row=rows, radius=st.sampled_from([0, 1, 2, 3, 4, 10, 10**15]), anchor=levels, relaxed=levels)
def test_localleap_relaxes_near_what_is_certain(row, radius, anchor, relaxed):
    relaxed = min(anchor, relaxed)
    wanted = rules.localleap(anchor, relaxed, radius)(candidates_of(row))
    assert select(LocalLeapPolicy(anchor, relaxed, radius), row) == wanted


@given(row=rows, threshold=levels)
def test_threshold_takes_what_reaches_it(row, threshold):
    assert select(ThresholdPolicy(threshold), row) == rules.threshold(threshold)(candidates_of(row))


@given(row=rows, threshold=levels)
def test_one_more_adds_the_surest_of_those_below_the_threshold(row, threshold):
    candidates = candidates_of(row)
    accepted = rules.threshold(threshold)(candidates)
    rest = [position for position in rules.by_confidence(candidates) if position not in accepted]
    assert select(ThresholdPolicy(threshold, one_more=True), row) == accepted | set(rest[:1])


@given(row=rows)
def test_one_token_a_step_is_the_most_confident_and_the_leftmost_among_equals(row):
    assert select(FixedPolicy(), row) == rules.quota(1)(candidates_of(row))


@given(row=rows, rank=st.sampled_from(["margin", "entropy"]))
def test_one_token_a_step_takes_the_largest_margin_or_the_least_entropy(row, rank):
    prediction, eligible = prediction_of(row)
    prediction = replace(prediction, confidence=torch.rand(eligible.shape), extras={rank: prediction.confidence})
    sign = -1 if rank == "entropy" else 1
    candidates = {position: sign * value for position, value in candidates_of(row).items()}
    mask = FixedPolicy(rank=rank).select(prediction, eligible, None, None).mask
    assert positions(mask) == rules.quota(1)(candidates)


@given(row=rows, data=st.data())
def test_the_oracle_takes_what_is_right_and_else_the_whole_window(row, data):
    prediction, eligible = prediction_of(row)
    tokens = st.lists(st.integers(5, 6), min_size=len(row), max_size=len(row))
    proposed = data.draw(tokens)
    answer = data.draw(tokens)
    prediction = replace(prediction, tokens=torch.tensor([proposed]))
    reference = torch.tensor([answer])
    commit = OraclePolicy(reference).select(prediction, eligible, None, Reference(reference))
    candidates = candidates_of(row)
    right = {position for position in candidates if proposed[position] == answer[position]}
    assert positions(commit.mask) == (right or set(candidates))
    assert positions(commit.forced) == (set() if right else set(candidates))
    assert commit.tokens.equal(reference)


@given(row=rows, tokens=st.integers(1, 4))
def test_left_to_right_takes_the_leftmost(row, tokens):
    assert select(LeftToRightPolicy(tokens), row) == rules.leftmost(tokens)(candidates_of(row))


@given(row=rows, threshold=levels, tokens=st.integers(1, 4))
def test_low_confidence_takes_what_exceeds_the_threshold_or_its_quota(row, threshold, tokens):
    wanted = rules.low_confidence(threshold, tokens)(candidates_of(row))
    assert select(LowConfidencePolicy(threshold, tokens), row) == wanted


@given(row=rows, bound=st.sampled_from([0.0, 0.25, 0.6, 1.0, 2.0]))
def test_entropy_sum_takes_the_lowest_entropies_below_the_bound(row, bound):
    prediction, eligible = prediction_of(row)
    prediction = replace(prediction, extras={"entropy": prediction.confidence})
    mask = EntropySumPolicy(bound).select(prediction, eligible, None, None).mask
    assert positions(mask) == rules.entropy_sum(bound)(candidates_of(row))


@given(row=rows, data=st.data())
def test_where_a_rule_takes_nothing_eligible_the_most_confident_is_committed(row, data):
    prediction, eligible = prediction_of(row)
    candidates = candidates_of(row)
    taken = data.draw(st.sets(st.integers(0, len(row) - 1))) & set(candidates)
    mask = torch.tensor([[position in taken for position in range(len(row))]])
    commit = at_least_one(Commit(mask), prediction, eligible)
    wanted = rules.at_least_one(taken, candidates)
    assert positions(commit.mask) == wanted
    assert positions(commit.forced) == wanted - taken


margins = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0, float("inf")]), min_size=1, max_size=8)


@given(margins=margins, bar=st.sampled_from([0.5, 1.0, 2.0]))
def test_a_position_that_may_hold_one_id_alone_says_nothing_to_prophet(margins, bar):
    """Its margin over the second id is infinite."""
    prediction, eligible = prediction_of([(0.5, True)] * len(margins))
    prediction = replace(prediction, extras={"logit_margin": torch.tensor([margins])})
    state = DecodeState.of_block(prediction.tokens, eligible, SPEC)
    commit = ProphetPolicy(bar, bar, bar).select(prediction, eligible, state, None)
    counted = [margin for margin in margins[:5] if margin < float("inf")]
    certain = bool(counted) and sum(counted) / len(counted) >= bar
    assert positions(commit.mask) == (set(range(len(margins))) if certain else {0})
