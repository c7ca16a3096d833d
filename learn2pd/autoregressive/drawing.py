"""How a token is drawn, and how a draft's token is tested so that the result has the target's distribution.

A draft's token x, drawn with probability q(x), stands with the probability min(1, p(x) / q(x)), where p is the target's
distribution. Where it does not stand, a token drawn from max(p - q, 0) takes its place (arXiv 2211.17192). The token
that results has exactly the distribution p, whatever q is. At temperature 0 both distributions are a single token: the
draft's token stands where it is the target's.

In the shapes, R is the number of rows, T of tested positions, V of tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from learn2pd.types import Sampling, restrict

DRAWS = 3  # uniform numbers of a position: the draft's draw, its test, and the token that takes its place
NO_DRAFT = -1  # stands for the token of a position that no draft wrote


class Rule(Protocol):
    """Draws and tests tokens."""

    def draw(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draw the draft's token for each of R rows.

        Args:
            logits: [R, V] float, of the draft.
            uniform: [R, 3] float64, the uniform numbers of the position.

        Returns:
            The tokens [R] long, and the distribution [R, V] they were drawn from, None where it is a single token.
        """

    def verify(
        self, logits: Tensor, drafted: Tensor, proposed: Tensor | None, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Test drafted tokens.

        Args:
            logits: [R, T, V] float, of the target.
            drafted: [R, T] long, the tokens, `NO_DRAFT` where the target has to draw alone.
            proposed: [R, T, V] float64, the distributions they were drawn from; zeros where no draft was. None where
                each is a single token.
            uniform: [R, T, 3] float64, the uniform numbers of the positions.

        Returns:
            [R, T] bool, the tokens that stand, and [R, T] long, the tokens that take the place of the others.
        """


class Greedy:
    """Takes the most probable token."""

    def draw(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor | None]:
        return logits.argmax(-1), None

    def verify(
        self, logits: Tensor, drafted: Tensor, proposed: Tensor | None, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        best = logits.argmax(-1)
        return best == drafted, best


class Sampled:
    """Draws tokens at a temperature.

    Args:
        sampling: Temperature, above 0, and filters.
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling

    def draw(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor | None]:
        probability = self._probability(logits)
        return pick(probability, uniform[:, 0]), probability

    def verify(
        self, logits: Tensor, drafted: Tensor, proposed: Tensor | None, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = self._probability(logits)
        proposed = torch.zeros_like(wanted) if proposed is None else proposed
        token = drafted.clamp_min(0)[..., None]
        stands = uniform[..., 1] * proposed.gather(-1, token)[..., 0] < wanted.gather(-1, token)[..., 0]
        left = (wanted - proposed).clamp_min(0)
        # equal distributions leave nothing but rounding, and refuse no token
        left = torch.where(left.sum(-1, keepdim=True) > 0, left, wanted)
        return stands & (drafted != NO_DRAFT), pick(left, uniform[..., 2])

    def _probability(self, logits: Tensor) -> Tensor:
        flat = logits.double().flatten(0, -2) / self.sampling.temperature
        return restrict(flat, self.sampling).softmax(-1).view(logits.shape)


def rule_of(sampling: Sampling) -> Rule:
    """Return the rule of a sampling."""
    return Sampled(sampling) if sampling.temperature else Greedy()


def pick(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw from weights that need not sum to 1.

    Args:
        weights: [..., V] float64, none below 0 and not all 0.
        uniform: [...] float64, from 0 to below 1.

    Returns:
        [...] long. A token of weight 0 is never drawn.
    """
    steps = weights.cumsum(-1)
    total = steps[..., -1]
    at = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(steps, at[..., None], right=True)[..., 0]


def uniforms(seeds: list[int], positions: int) -> Tensor:
    """Draw the uniform numbers of a run. They depend on the row's seed and the position alone.

    Args:
        seeds: The seed of each row.
        positions: The number of positions.

    Returns:
        [B, positions, 3] float64.
    """
    drawn = torch.empty(len(seeds), positions, DRAWS, dtype=torch.float64)
    for row, seed in enumerate(seeds):
        drawn[row] = torch.rand(
            positions, DRAWS, generator=torch.Generator().manual_seed(seed % 2**63), dtype=torch.float64
        )
    return drawn
