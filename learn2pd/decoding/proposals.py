"""Logits to proposals: token, confidence and, where asked, margin, entropy.

Confidence is the float32 softmax probability of the proposed token under the unscaled logits; temperature, top-p and top-k shape only
which token is proposed. The mask token is never proposed. No float64 and no softmax of the whole canvas: arg-max and normaliser of the
scored positions, a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CONFIDENCE = "float32 softmax of unscaled logits, mask token excluded, before temperature"
EXTRAS = ("margin", "entropy")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the default is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0  # smallest set of tokens with at least this probability at the temperature
    top_k: int = 0  # most probable tokens; 0 is all

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected 0 or more, and finite")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a probability above 0, at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected 0 (all tokens) or more")


GREEDY = Sampling()


@dataclass(frozen=True)
class Draw:
    """One draw of N tokens. Applied to other logits it uses the same noise, so that equal distributions always agree (Gumbel coupling)."""

    sampling: Sampling
    noise: Tensor | None = None  # [N, V] float64 Gumbel; None is greedy

    def __call__(self, logits: Tensor) -> Tensor:
        """Tokens [N] long of logits [N, V]."""
        if self.noise is None:
            return logits.argmax(-1)
        scaled = restrict(logits.double() / self.sampling.temperature, self.sampling)
        return (scaled + self.noise[:, : logits.shape[-1]]).argmax(-1)


def restrict(logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits [N, V] with -inf outside the `top_k` and `top_p` sets; the most probable token always stays."""
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        probability = ordered.softmax(-1)
        dropped = probability.cumsum(-1) - probability >= sampling.top_p  # what comes before a token already suffices
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return logits


def gumbel(counts: Sequence[int], generators: Sequence[torch.Generator], vocab_size: int) -> Tensor:
    """[N, V] float64 noise, `counts[i]` rows from generator i, so that neighbours in a batch cannot matter.

    float64: noise from float32 draws saturates.
    """
    uniform = [torch.rand(count, vocab_size, generator=generator, dtype=torch.float64) for count, generator in zip(counts, generators, strict=True)]
    return -(-torch.cat(uniform).clamp_min(1e-300).log()).log()


def propose(logits: Tensor, draw: Draw, needs: frozenset[str]) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Proposals of N positions.

    Args:
        logits: [N, V] float32, the mask token at -inf.
        draw: chooses the tokens.
        needs: which of `EXTRAS` to compute.

    Returns:
        tokens [N] long, confidence [N] float32, extras: margin [N] (probability of the first minus the second), entropy [N] in nats.
    """
    extras = {}
    top = logits.topk(2).values if "margin" in needs else logits.max(-1, keepdim=True).values
    best = top[:, :1]
    tokens = draw(logits)
    below = logits - best  # best - logsumexp would cancel digits near 1
    chosen = below.gather(1, tokens[:, None])[:, 0].exp()
    if "entropy" in needs:
        log_prob = below - below.exp().sum(-1, keepdim=True).log()
        extras["entropy"] = -(log_prob.exp() * log_prob.masked_fill(log_prob == -torch.inf, 0)).sum(-1)
    total = below.exp_().sum(-1)  # [N] softmax denominator relative to the best
    if "margin" in needs:
        extras["margin"] = (1 - (top[:, 1] - top[:, 0]).exp()) / total
    return tokens, chosen / total, extras
