"""DSB Cache (arXiv 2602.05992): a step recomputes the window and a few columns around it.

The rule: with the window at start <= i < stop, and d the number of positions by which the window moved since the last
step, a step recomputes the positions i with

    start - max(prefix_window, d) <= i < stop + suffix_window.

A step recomputes everything instead if at least `refresh_tokens` tokens were committed since the last full forward.
The columns before the window are recomputed because the keys and values of tokens that were committed a short time ago
are not stable yet.

Deviation from the authors' code: masks behind the window are never committed here. Their code commits some of them
where `suffix_window` is above 0, because it applies a mask of the whole sequence to a slice of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.errors import check_at_least
from learn2pd.loop.plans import full_plan, partial_plan
from learn2pd.roles import Cache
from learn2pd.types import DecodeState, ForwardPlan, ModelSpec, RowMemory


@dataclass(frozen=True)
class Refreshed(RowMemory):
    """The last window, and the commits before the last full forward.

    Attributes:
        start: [B] long, the start of the last window.
        commits: [B] long, the commits before the last full forward, -1 before the first one.
    """

    start: Tensor
    commits: Tensor


class DSBCache(Cache):
    """DSB Cache.

    Args:
        refresh_tokens: The number of commits since the last full forward, the commits of that step included, after
            which everything is recomputed; at least 1.
        prefix_window: The columns before the window that are recomputed with it. The paper has 24 for LLaDA and 4 for
            Dream.
        suffix_window: The columns behind the window that are recomputed with it. The paper has 0.

    Raises:
        ValueError: A number is too small.
    """

    name = "dsb"
    slides = True

    def __init__(self, refresh_tokens: int = 32, prefix_window: int = 24, suffix_window: int = 0) -> None:
        self.refresh_tokens = check_at_least(1, "refresh_tokens", refresh_tokens)
        self.prefix_window = check_at_least(0, "prefix_window", prefix_window)
        self.suffix_window = check_at_least(0, "suffix_window", suffix_window)

    def start(self, state: DecodeState, spec: ModelSpec) -> Refreshed:
        zeros = torch.zeros_like(state.end)
        return Refreshed(zeros, zeros - 1)

    def plan(self, state: DecodeState, score: Tensor, memory: Refreshed) -> tuple[list[ForwardPlan], Refreshed]:
        start = state.window.start
        stop = state.window.stop
        since = state.commits - memory.commits
        refresh = state.open & ((memory.commits < 0) | (since >= self.refresh_tokens))
        before = torch.maximum(start - memory.start, torch.full_like(start, self.prefix_window))
        first = torch.maximum(start - before, state.pad - state.prompt_width)
        last = torch.minimum(stop + self.suffix_window, state.visible)
        score = score & self.scored(state, refresh, first, torch.minimum(stop, last))
        plans = full_plan(state, refresh, score, keep=True)
        plans += partial_plan(state, state.open & ~refresh, first, last, score, state.visible, state.spec.shift)
        return plans, Refreshed(start, torch.where(refresh, state.commits, memory.commits))

    def scored(self, state: DecodeState, refresh: Tensor, first: Tensor, stop: Tensor) -> Tensor:
        """Mark the positions that the step may score: those before `stop`. A subclass may decide otherwise.

        Args:
            state: The state before the forward.
            refresh: [B] bool, the rows that recompute everything.
            first: [B] long, the first position that the other rows recompute.
            stop: [B] long, the end of the window, or of the sequence where it was cut before.

        Returns:
            [B, G] bool.
        """
        return torch.arange(state.gen_length, device=stop.device) < stop[:, None]
