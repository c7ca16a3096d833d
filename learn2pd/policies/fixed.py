"""Fixed quota: the number of steps is given, and the steps share out the tokens.

This is LLaDA's own decoding (arXiv 2502.09992, "low-confidence remasking"), and with `rank` entropy or margin it is
Dream's (arXiv 2508.15487).

The rule: `steps` is the total for the whole canvas, and the blocks share it out by their length. When a block opens
with m masks and s steps, each of its steps commits the floor(m / s) most confident positions, and each of the first
m mod s steps commits one more. With the default, steps = gen_length, every step commits one token. `rank` decides which
position is the most confident one: the one with the highest probability of its proposal (`confidence`), with the
largest margin over the second token (`margin`), or with the lowest entropy (`entropy`).

Two cases in which the run does not take `steps` steps: every block takes at least one step, so that a run with fewer
`steps` than blocks takes more. Where the window slides (schedulers dsb and lookahead), every new place of the window
counts as a new block, so that `steps` is a pace and not the total.

Deviations from the authors' code:

- The canvas need not be a multiple of the block.
- Where a block has more steps than masks, the quota of 0 is raised to 1.
- Dream commits floor(m * (1 - s / t)) positions along its time grid, so that some forwards commit nothing and later
  ones catch up. Here the quota is even.
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
    """The place of each row in its block.

    Attributes:
        start: [B] long, the start of the block's window, -1 before the first block.
        masks: [B] long, the masks of the block when it opened.
        steps: [B] long, the steps that the block was given. The number is kept, because a stop rule may shorten the
            window later.
        step: [B] long, the number of the last step in the block, counted from 0.
    """

    start: Tensor
    masks: Tensor
    steps: Tensor
    step: Tensor


class FixedPolicy(Policy):
    """Fixed quota.

    Args:
        steps: The steps for the whole canvas; None commits one token a step.
        rank: The measure of confidence: `confidence`, `margin` or `entropy`.

    Raises:
        ValueError: The steps are below 1, or the rank is unknown.
    """

    name = "fixed"

    def __init__(self, steps: int | None = None, rank: str = "confidence") -> None:
        if rank not in RANKS:
            raise ValueError(f"rank={rank!r}: expected {', '.join(RANKS)}")
        self.steps = None if steps is None else check_at_least(1, "steps", steps)
        self.rank = rank
        self.reads_canvas = self.steps is not None
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
