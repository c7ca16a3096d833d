from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.decoding.proposals import propose, sample

EVERYTHING = frozenset({"margin", "entropy"})


def logits(seed, rows=20, vocabulary=50, spread=6.0):
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def reference(values, mask_id):
    values = values.double().clone()
    values[:, mask_id] = -torch.inf
    return values.softmax(-1)


@given(seed=st.integers(0, 100), mask_id=st.integers(0, 49), spread=st.sampled_from([0.1, 2.0, 30.0]))
def test_proposals_are_those_of_a_float64_softmax_without_the_mask_token(seed, mask_id, spread):
    values = logits(seed, spread=spread)
    probability = reference(values, mask_id)
    top = probability.topk(2).values
    tokens, confidence, extras = propose(values.clone(), mask_id, EVERYTHING)
    assert tokens.equal(probability.argmax(-1))
    assert torch.allclose(confidence.double(), top[:, 0], rtol=1e-6)
    assert torch.allclose(extras["margin"].double(), top[:, 0] - top[:, 1], atol=1e-6)
    assert torch.allclose(extras["entropy"].double(), -(probability * probability.clamp_min(1e-300).log()).sum(-1), atol=1e-4)


def test_asking_for_extras_changes_neither_token_nor_confidence():
    plain, rich = (propose(logits(3), 7, needs) for needs in (frozenset(), EVERYTHING))
    assert plain[0].equal(rich[0])
    assert plain[1].equal(rich[1])


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_confidences_near_one_stay_apart_whatever_the_size_of_the_logits(offset):
    """best - logsumexp(logits) loses as many digits as the logits have before the point."""
    values = torch.full((2, 10), -20.0)
    values[:, 0] = 0.0
    values[0, 1], values[1, 1] = -13.0, -13.5  # about 2e-6 and 1e-6 below one
    _, confidence, _ = propose(values + offset, 9, frozenset())
    assert confidence[0] < confidence[1] < 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_float32_confidences(dtype):
    values = logits(1).to(dtype)
    _, confidence, _ = propose(values.clone(), 0, frozenset())
    assert confidence.dtype == torch.float32
    assert torch.allclose(confidence.double(), reference(values, 0).max(-1).values, rtol=1e-6)


def test_samples_follow_the_tempered_distribution_and_never_the_mask_token():
    temperature, draws = 0.7, 20_000
    values = torch.tensor([[0.0, 1.0, 2.0, 9.0]]).repeat(draws, 1)
    generator = torch.Generator().manual_seed(0)
    tokens, confidence = sample(values.clone(), temperature, torch.zeros(draws, dtype=torch.long), [generator], 3)
    wanted = torch.softmax(torch.tensor([0.0, 1.0, 2.0]) / temperature, 0)
    assert torch.allclose(tokens.bincount(minlength=4)[:3] / draws, wanted, atol=0.015)
    assert (tokens != 3).all()
    assert torch.allclose(confidence, reference(values, 3).float().gather(1, tokens[:, None])[:, 0])


def test_a_vanishing_temperature_is_greedy():
    values = logits(5)
    tokens, confidence = sample(values.clone(), 1e-6, torch.zeros(20, dtype=torch.long), [torch.Generator().manual_seed(0)], 0)
    greedy = propose(values.clone(), 0, frozenset())
    assert tokens.equal(greedy[0])
    assert torch.allclose(confidence, greedy[1])
