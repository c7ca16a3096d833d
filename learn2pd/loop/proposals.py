"""Logits to proposals: token, confidence and, where asked, margin, entropy.

Confidence is the float32 softmax probability of the proposed token under the unscaled logits; temperature, top-p and top-k shape only
which token is proposed. The mask token is never proposed. No float64 and no softmax of the whole canvas: arg-max and normaliser of the
scored positions, a few positions at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learn2pd.types import UNRESTRICTED, DecodeState, Draw

EXTRAS = ("margin", "entropy")
SEED_FACTOR = 1_000_003  # keeps the steps of one seed apart from those of the next


def restrict_ids(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits [N, V] with -inf at every id that a position may not hold.

    Args:
        allowed: [N, A] long, ids, filled with `UNRESTRICTED`; a position without any id is not restricted.
    """
    vocab_size = logits.shape[1]
    ids = allowed.masked_fill(allowed == UNRESTRICTED, vocab_size)  # one more column takes the fill
    permitted = torch.zeros(len(logits), vocab_size + 1, dtype=torch.bool, device=logits.device).scatter_(1, ids, True)
    free = (allowed == UNRESTRICTED).all(1, keepdim=True)
    return logits.masked_fill(~(permitted[:, :vocab_size] | free), -torch.inf)


def row_generators(state: DecodeState) -> list[torch.Generator]:
    """A generator for each row's draws of this step: a function of the row's seed and step, so that neighbours in a batch cannot matter."""
    pairs = zip(state.seed.tolist(), state.step.tolist(), strict=True)
    return [torch.Generator().manual_seed((seed * SEED_FACTOR + step) % 2**63) for seed, step in pairs]


def row_noise(rows: Tensor, generators: Sequence[torch.Generator], vocab_size: int) -> Tensor:
    """[N, V] float64 Gumbel noise for positions of `rows` [N] long, ascending, each row's from its own generator.

    float64: noise from float32 draws saturates.
    """
    counts = torch.bincount(rows, minlength=len(generators)).tolist()
    uniform = [
        torch.rand(count, vocab_size, generator=generator, dtype=torch.float64)
        for count, generator in zip(counts, generators, strict=True)
    ]
    return -(-torch.cat(uniform).clamp_min(1e-300).log()).log().to(rows.device)


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
