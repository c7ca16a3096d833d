from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.loop.proposals import propose as propose_drawn
from learn2pd.loop.proposals import restrict_ids, row_noise
from learn2pd.types import SPAN, Draw, Sampling, best_tokens, restrict

EVERYTHING = frozenset({"margin", "entropy"})


def noise_of(positions, seed, vocab_size):
    """The noise of one row's positions."""
    return row_noise(torch.zeros(positions, dtype=torch.long), [torch.Generator().manual_seed(seed)], vocab_size)


def logits(seed, rows=20, vocabulary=50, spread=6.0):
    """Random logits."""
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def propose(values, mask_id, needs):
    """Greedy proposals, as the loop asks for them."""
    values = values.float().clone()
    values[:, mask_id] = -torch.inf
    return propose_drawn(values, Draw(Sampling()), needs)


def sample(values, temperature, mask_id, seed=0, **restriction):
    """Tokens and confidences that are drawn from logits, the mask token excluded."""
    values = values.clone()
    values[:, mask_id] = -torch.inf
    noise = noise_of(len(values), seed, values.shape[1])
    return propose_drawn(values, Draw(Sampling(temperature, **restriction), noise), frozenset())[:2]


def reference(values, mask_id):
    """The float64 softmax of logits without the mask token."""
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
    assert torch.allclose(
        extras["entropy"].double(), -(probability * probability.clamp_min(1e-300).log()).sum(-1), atol=1e-4
    )


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
    tokens, confidence = sample(values, temperature, 3)
    wanted = torch.softmax(torch.tensor([0.0, 1.0, 2.0]) / temperature, 0)
    assert torch.allclose(tokens.bincount(minlength=4)[:3] / draws, wanted, atol=0.015)
    assert (tokens != 3).all()
    assert torch.allclose(confidence, reference(values, 3).float().gather(1, tokens[:, None])[:, 0])


def test_a_vanishing_temperature_is_greedy():
    values = logits(5)
    tokens, confidence = sample(values, 1e-6, 0)
    greedy = propose(values.clone(), 0, frozenset())
    assert tokens.equal(greedy[0])
    assert torch.allclose(confidence, greedy[1])


@given(
    seed=st.integers(0, 50),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.integers(0, 60),
)
def test_draws_stay_in_the_smallest_likely_set(seed, temperature, top_p, top_k):
    values = logits(seed, spread=2.0)
    tokens, _ = sample(values, temperature, 7, seed, top_p=top_p, top_k=top_k)
    for row, token in zip(values.double(), tokens.tolist(), strict=True):
        row = row.clone()
        row[7] = -torch.inf
        order = row.argsort(descending=True)[: top_k or None]
        probability = (row[order] / temperature).softmax(-1)
        needed = int((probability.cumsum(-1) < top_p).sum()) + 1
        assert token in order[:needed].tolist()


def test_the_most_likely_token_always_stays():
    values = torch.tensor([[3.0, 3.0, 3.0, -torch.inf], [0.0, 5.0, 1.0, 2.0]]).double()
    kept = restrict(values, Sampling(1.0, top_p=1e-9, top_k=1))
    assert kept.argmax(-1).tolist() == [0, 1]
    assert (kept.isfinite().sum(-1) >= 1).all()


def test_one_draw_chooses_the_same_token_from_the_same_distribution():
    """What APD couples draft and target by."""
    values, noise = logits(2, spread=1.0), noise_of(20, 1, 50)
    draw = Draw(Sampling(0.8, top_p=0.9), noise)
    assert draw(values).equal(draw(values + 5.0))
    assert not draw(values).equal(Draw(Sampling(0.8), noise_of(20, 2, 50))(values))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_k": -2}, "top_k=-2"),
    ],
)
def test_a_sampling_that_makes_no_sense_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Sampling(**options)


@given(
    seed=st.integers(0, 20),
    allowed=st.lists(st.lists(st.integers(-1, 19), min_size=3, max_size=3), min_size=1, max_size=6),
)
def test_a_position_holds_one_of_its_allowed_ids_and_any_where_none_is_named(seed, allowed):
    values = torch.randn(len(allowed), 20, generator=torch.Generator().manual_seed(seed))
    restricted = restrict_ids(values.clone(), torch.tensor(allowed))
    for row, ids in enumerate(allowed):
        named = {token for token in ids if token >= 0} or set(range(20))
        assert {token for token in range(20) if restricted[row, token].isfinite()} == named
        assert all(restricted[row, token] == values[row, token] for token in named)


@given(
    seed=st.integers(0, 1000),
    vocabulary=st.sampled_from([1, SPAN, 2 * SPAN - 1, 2 * SPAN, 2 * SPAN + 1, 5 * SPAN + 7]),
    values=st.sampled_from([2, 1000]),
)
def test_the_most_probable_token_is_the_first_largest_logit(seed, vocabulary, values):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(values, (4, vocabulary), generator=generator).float()  # with many equal logits
    drawn[1] = -torch.inf
    drawn[2, -1] = torch.nan
    assert best_tokens(drawn).equal(drawn.argmax(-1))
