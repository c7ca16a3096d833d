"""The step from logits to proposals: the token, its confidence and, where a component needs them, margin and entropy.

The confidence is the float32 softmax probability of the proposed token under the unscaled logits. Temperature, top-p
and top-k only decide which token is proposed. The mask token is never proposed.

The functions compute in float32 and never build the softmax of the whole canvas. They need the arg-max and the
normaliser of the scored positions only, and the caller gives them a few positions at a time.

In the shapes, N is the number of scored positions and V the number of tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from learn2pd.types import UNRESTRICTED, DecodeState, Draw

EXTRAS = ("margin", "entropy", "logit_margin")
SCORE_VALUES = 2**23  # logits that are held at one time: 66 positions of LLaDA's vocabulary, 32 MiB in float32
STREAM = 2**61 - 1  # keeps the draws of a policy apart from those of the tokens
SEED_FACTOR = 1_000_003  # keeps the draws of one seed's steps apart from the draws of the next seed's steps


def restrict_ids(logits: Tensor, allowed: Tensor) -> Tensor:
    """Set the logits of all ids that a position may not hold to -inf.

    Args:
        logits: [N, V] float.
        allowed: [N, A] long, the ids that each position may hold. Unused places hold `UNRESTRICTED`. A position whose
            places all hold `UNRESTRICTED` may hold any id.

    Returns:
        [N, V] float.
    """
    vocab_size = logits.shape[1]
    ids = allowed.masked_fill(allowed == UNRESTRICTED, vocab_size)  # one more column takes the fill
    permitted = torch.zeros(len(logits), vocab_size + 1, dtype=torch.bool, device=logits.device).scatter_(1, ids, True)
    free = (allowed == UNRESTRICTED).all(1, keepdim=True)
    return logits.masked_fill(~(permitted[:, :vocab_size] | free), -torch.inf)


def row_generators(state: DecodeState, stream: int = 0) -> list[torch.Generator]:
    """Make a random generator for the draws of each row in this step.

    A generator depends on the row's seed and step alone, so that the other rows of the batch do not change the draws.

    Args:
        state: The state before the step. Where it lies on a device, reading its seeds waits for the device.
        stream: What is drawn: 0 the tokens. A policy that draws itself has a number of its own.

    Returns:
        One generator for each row, on the CPU.
    """
    seeds, steps = torch.stack((state.seed, state.step)).tolist()
    return [
        torch.Generator().manual_seed((seed * SEED_FACTOR + step + stream * STREAM) % 2**63)
        for seed, step in zip(seeds, steps, strict=True)
    ]


def row_noise(rows: Tensor, generators: Sequence[torch.Generator], vocab_size: int) -> Tensor:
    """Draw Gumbel noise for every scored position, from the generator of its row.

    The noise is float64, because noise that is made from float32 draws saturates.

    Args:
        rows: [N] long, the row of each position, ascending, on the host.
        generators: One generator for each row of the batch.
        vocab_size: V.

    Returns:
        [N, V] float64, on the host.
    """
    counts = torch.bincount(rows, minlength=len(generators)).tolist()
    uniform = [
        torch.rand(count, vocab_size, generator=generator, dtype=torch.float64)
        for count, generator in zip(counts, generators, strict=True)
    ]
    return -(-torch.cat(uniform).clamp_min(1e-300).log()).log()


def standing(logits: Tensor, tokens: Tensor, needs: frozenset[str]) -> Mapping[str, Tensor]:
    """Describe how N committed tokens stand, each by the distribution given all tokens but itself.

    Args:
        logits: [N, V] float32, with the mask token at -inf.
        tokens: [N] long.
        needs: The extras to compute; other names than those of the result are ignored.

    Returns:
        [N] float32 by name: the probability `leave_one_out`, the number of more probable tokens `leave_one_out_rank`,
        the entropy in nats `leave_one_out_entropy`.
    """
    log_prob = logits.log_softmax(-1)
    own = log_prob.gather(1, tokens[:, None])
    described = {"leave_one_out": own[:, 0].exp()}
    if "leave_one_out_rank" in needs:
        described["leave_one_out_rank"] = (log_prob > own).sum(-1)
    if "leave_one_out_entropy" in needs:
        described["leave_one_out_entropy"] = -(log_prob.exp() * log_prob.masked_fill(log_prob == -torch.inf, 0)).sum(-1)
    return {name: values for name, values in described.items() if name in needs}


def propose(logits: Tensor, draw: Draw, needs: frozenset[str]) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Propose a token for each of N positions.

    Args:
        logits: [N, V] float32, with the mask token at -inf. They are overwritten, since a copy takes as much memory.
        draw: The rule that draws the tokens.
        needs: The extras to compute; names outside `EXTRAS` are ignored.

    Returns:
        The tokens [N] long, their confidence [N] float32, and the extras by name: `margin` [N] is the probability of
        the most probable token minus that of the second, `logit_margin` [N] is the same of their logits, `entropy` [N]
        is in nats.
    """
    extras = {}
    top = logits.topk(2).values if needs & {"margin", "logit_margin"} else logits.amax(-1, keepdim=True)
    best = top[:, :1]
    tokens = draw(logits)
    below = logits.sub_(best)  # the difference best - logsumexp would lose digits for confidences near 1
    weight = below.gather(1, tokens[:, None])[:, 0].exp()  # [N], of the proposed token relative to the best one
    if "logit_margin" in needs:
        extras["logit_margin"] = top[:, 0] - top[:, 1]
    if "entropy" in needs:
        log_prob = below - below.exp().sum(-1, keepdim=True).log()
        extras["entropy"] = -(log_prob.exp() * log_prob.masked_fill(log_prob == -torch.inf, 0)).sum(-1)
    total = below.exp_().sum(-1)  # [N] softmax denominator relative to the best
    if "margin" in needs:
        extras["margin"] = (1 - (top[:, 1] - top[:, 0]).exp()) / total
    return tokens, weight / total, extras
