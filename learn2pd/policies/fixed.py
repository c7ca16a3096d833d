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

from learn2pd.errors import check_at_least
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory

RANKS = ("confidence", "margin", "entropy")


@dataclass(frozen=True)
class Quota(RowMemory):
    """Where each row stands in its block."""

    start: Tensor  # [B] long, window start the rest refers to, -1 before the first
    masks: Tensor  # [B] long, masks when the block was entered
    steps: Tensor  # [B] long, steps the block was given; kept, because a stop rule may shorten the window later
    step: Tensor  # [B] long, steps taken in the block


class FixedPolicy(Policy):
    """Fixed quota.

    Args:
        steps: for the whole canvas; None is one token a step.
        rank: what most confident means: `confidence`, `margin` or `entropy`.

    Raises:
        ValueError: for steps below 1 or another rank.
    """

    name = "fixed"

    def __init__(self, steps: int | None = None, rank: str = "confidence") -> None:
        if rank not in RANKS:
            raise ValueError(f"rank={rank!r}: expected {', '.join(RANKS)}")
        self.steps = None if steps is None else check_at_least(1, "steps", steps)
        self.rank = rank
        self.needs = frozenset({rank} - {"confidence"})

    def start(self, state: DecodeState, spec: ModelSpec) -> Quota:
        zeros = torch.zeros_like(state.end)
        return Quota(zeros - 1, zeros, zeros + 1, zeros)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Quota) -> Commit:
        certainty = prediction.confidence if self.rank == "confidence" else prediction.extra(self.rank)
        certainty = -certainty if self.rank == "entropy" else certainty
        if self.steps is None:
            return Commit(most_confident(certainty, eligible))
        entered = state.window.start != memory.start
        before, after = (self.steps * edge // state.gen_length for edge in (state.window.start, state.window.stop))
        memory = Quota(
            start=state.window.start,
            masks=torch.where(entered, eligible.sum(1), memory.masks),
            steps=torch.where(entered, (after - before).clamp_min(1), memory.steps),
            step=torch.where(entered, 0, memory.step + 1),
        )
        quota = memory.masks // memory.steps + (memory.step < memory.masks % memory.steps)
        return Commit(most_confident(certainty, eligible, quota.clamp_min(1)), memory=memory)
