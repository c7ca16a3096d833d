"""Logits to proposals: token, confidence and, where asked, margin, entropy.

Confidence is the float32 softmax probability of the proposed token under the unscaled logits; temperature shapes only which token is
proposed. The mask token is never proposed. No float64 and no softmax of the whole canvas: arg-max and normaliser of the scored positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CONFIDENCE = "float32 softmax of unscaled logits, mask token excluded, before temperature"
EXTRAS = ("margin", "entropy")


def propose(logits: Tensor, mask_id: int, needs: frozenset[str]) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Greedy proposals.

    Args:
        logits: [N, V] any float dtype.
        mask_id: never proposed.
        needs: which of `EXTRAS` to compute.

    Returns:
        tokens [N] long, confidence [N] float32, extras: margin [N] (probability of the first minus the second), entropy [N] in nats.
    """
    logits = logits.float()
    logits[:, mask_id] = -torch.inf
    if "margin" in needs:
        top, ids = logits.topk(2)  # [N, 2]
        best, tokens = top[:, 0], ids[:, 0]
    else:
        best, tokens = logits.max(-1)
    total = (logits - best[:, None]).exp().sum(-1)  # [N] softmax denominator relative to `best`; best - logsumexp would cancel digits near 1
    extras = {}
    if "margin" in needs:
        extras["margin"] = (1 - (top[:, 1] - best).exp()) / total
    if "entropy" in needs:
        log_prob = logits - best[:, None] - total.log()[:, None]
        extras["entropy"] = -(log_prob.exp() * log_prob.masked_fill(log_prob == -torch.inf, 0)).sum(-1)
    return tokens, 1 / total, extras


def sample(logits: Tensor, temperature: float, rows: Tensor, generators: Sequence[torch.Generator], mask_id: int) -> tuple[Tensor, Tensor]:
    """Gumbel-max draw from softmax(logits / temperature), each row from its own generator so that neighbours cannot matter.

    Args:
        logits: [N, V]; rows: [N] long, which row of the batch each belongs to, ascending.
        generators: one a row of the batch.

    Returns:
        tokens [N] long, confidence [N] float32 under the unscaled logits.
    """
    logits = logits.float()
    logits[:, mask_id] = -torch.inf
    noise = torch.empty_like(logits, dtype=torch.float64)  # float64: Gumbel noise of uniform float32 draws saturates
    counts = torch.bincount(rows, minlength=len(generators)).tolist()
    for part, generator in zip(noise.split(counts), generators, strict=True):  # a loop over rows, only when sampling
        part.copy_(torch.rand(part.shape, generator=generator, dtype=torch.float64))
    gumbel = -(-noise.clamp_min(1e-300).log()).log()
    tokens = (logits.double() + temperature * gumbel).argmax(-1)
    below = logits - logits.max(-1, keepdim=True).values
    return tokens, below.gather(1, tokens[:, None])[:, 0].exp() / below.exp().sum(-1)
