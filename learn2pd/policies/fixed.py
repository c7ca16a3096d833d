"""Fixed quota (LLaDA's own decoding, arXiv 2502.09992, low-confidence remasking).

`steps` is the total for the whole canvas, shared out among the blocks by their length. On entering a block with m masks and s steps,
each step commits the floor(m / s) most confident positions, the first m mod s steps one more. With steps = gen_length (the default)
that is one token a step.

Deviations from the authors' code: a canvas that is no multiple of the block works; a quota of 0 (more steps than masks) commits one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.policies.base import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


@dataclass
class Quota:
    """Where each row stands in its block."""

    start: Tensor  # [B] long, window start the rest refers to, -1 before the first
    masks: Tensor  # [B] long, masks when the block was entered
    steps: Tensor  # [B] long, steps the block was given; kept, because a stop rule may shorten the window later
    step: Tensor  # [B] long, steps taken in the block


class FixedPolicy:
    """Args: steps for the whole canvas; None is one token a step."""

    name = "fixed"
    needs: frozenset[str] = frozenset()
    scores_committed = False
    window_width: int | None = None

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps={steps}: expected at least 1")
        self.steps = steps

    def start(self, state: DecodeState) -> Quota:
        zeros = torch.zeros_like(state.end)
        return Quota(zeros - 1, zeros, zeros + 1, zeros)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Quota) -> Commit:
        if self.steps is None:
            return Commit(most_confident(prediction.confidence, eligible))
        entered = state.window.start != memory.start
        memory.start = state.window.start
        memory.masks = torch.where(entered, eligible.sum(1), memory.masks)
        before, after = (self.steps * edge // state.gen_length for edge in (state.window.start, state.window.stop))
        memory.steps = torch.where(entered, (after - before).clamp_min(1), memory.steps)
        memory.step = torch.where(entered, 0, memory.step + 1)
        quota = memory.masks // memory.steps + (memory.step < memory.masks % memory.steps)
        return Commit(most_confident(prediction.confidence, eligible, quota.clamp_min(1)))
