"""Logits to proposals: token, confidence and, where asked, margin, entropy.

Confidence is the float32 softmax probability of the proposed token under the unscaled logits; temperature, top-p and top-k shape only
which token is proposed. The mask token is never proposed. No float64 and no softmax of the whole canvas: arg-max and normaliser of the
scored positions, a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learn2pd.types import Draw

EXTRAS = ("margin", "entropy")


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
