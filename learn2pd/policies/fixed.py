"""Fixed quota (LLaDA's own decoding, arXiv 2502.09992, low-confidence remasking; Dream's, arXiv 2508.15487, with `rank` entropy or margin).

`steps` is the total for the whole canvas, shared out among the blocks by their length. On entering a block with m masks and s steps,
each step commits the floor(m / s) most confident positions, the first m mod s steps one more. With steps = gen_length (the default)
that is one token a step. Every block takes at least one step, so that fewer `steps` than blocks are exceeded; and where the window slides
(schedulers dsb and lookahead) each of its places counts as a block entered anew, so that `steps` is a pace and not the total.

Most confident is by the probability of the proposal, by its margin over the second (`margin`), or by low entropy (`entropy`).

Deviations from the authors' code: a canvas that is no multiple of the block works; a quota of 0 (more steps than masks) commits one. Dream
commits floor(m * (1 - s / t)) along its time grid, which leaves some forwards without a commit and catches up later; here the quota is even.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.loop.proposals import EXTRAS
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


@dataclass
class Quota:
    """Where each row stands in its block."""

    start: Tensor  # [B] long, window start the rest refers to, -1 before the first
    masks: Tensor  # [B] long, masks when the block was entered
    steps: Tensor  # [B] long, steps the block was given; kept, because a stop rule may shorten the window later
    step: Tensor  # [B] long, steps taken in the block


class FixedPolicy:
    """Args: steps for the whole canvas, None is one token a step; rank, `confidence`, `margin` or `entropy`."""

    name = "fixed"
    scores_committed = False
    window_width: int | None = None

    def __init__(self, steps: int | None = None, rank: str = "confidence") -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        if rank not in ("confidence", *EXTRAS):
            raise ValueError(f"rank={rank!r}: expected confidence, margin or entropy")
        self.steps, self.rank = steps, rank
        self.needs = frozenset({rank} & set(EXTRAS))

    def start(self, state: DecodeState) -> Quota:
        zeros = torch.zeros_like(state.end)
        return Quota(zeros - 1, zeros, zeros + 1, zeros)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Quota) -> Commit:
        certainty = prediction.confidence if self.rank == "confidence" else prediction.extras[self.rank]
        certainty = -certainty if self.rank == "entropy" else certainty
        if self.steps is None:
            return Commit(most_confident(certainty, eligible))
        entered = state.window.start != memory.start
        memory.start = state.window.start
        memory.masks = torch.where(entered, eligible.sum(1), memory.masks)
        before, after = (self.steps * edge // state.gen_length for edge in (state.window.start, state.window.stop))
        memory.steps = torch.where(entered, (after - before).clamp_min(1), memory.steps)
        memory.step = torch.where(entered, 0, memory.step + 1)
        quota = memory.masks // memory.steps + (memory.step < memory.masks % memory.steps)
        return Commit(most_confident(certainty, eligible, quota.clamp_min(1)))
