"""DSB Cache (arXiv 2602.05992): recompute the window and a few columns around it; everything again after `refresh_tokens` commits.

The columns before the window are recomputed because tokens that were committed lately have unstable keys and values: `prefix_window` of
them, or as many as the window moved by, if that is more.

Deviation from the authors' code: masks behind the window are never committed. Theirs commits some of them with `suffix_window` above 0,
because a mask that is meant for the whole sequence is applied to a slice of it.
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
    """Where the window was, and how long ago everything was recomputed."""

    extra: int  # columns before a window whose output is needed to propose its first token
    start: Tensor  # [B] long, start of the last window
    since: Tensor  # [B] long, tokens committed since everything was last recomputed, -1 before


class DSBCache(Cache):
    """DSB Cache.

    Args:
        refresh_tokens: commits since the last full forward, its own included, after which everything is recomputed.
        prefix_window: columns before the window that are recomputed with it; 24 for LLaDA and 4 for Dream in the paper.
        suffix_window: columns behind the window that are recomputed with it; 0 in the paper.

    Raises:
        ValueError: for a negative number, or `refresh_tokens` below 1.
    """

    name = "dsb"
    slides = True

    def __init__(self, refresh_tokens: int = 32, prefix_window: int = 24, suffix_window: int = 0) -> None:
        self.refresh_tokens = check_at_least(1, "refresh_tokens", refresh_tokens)
        self.prefix_window = check_at_least(0, "prefix_window", prefix_window)
        self.suffix_window = check_at_least(0, "suffix_window", suffix_window)

    def start(self, state: DecodeState, spec: ModelSpec) -> Refreshed:
        zeros = torch.zeros_like(state.end)
        return Refreshed(int(spec.shifted_logits), zeros, zeros - 1)

    def plan(self, state: DecodeState, score: Tensor, memory: Refreshed) -> tuple[list[ForwardPlan], Refreshed]:
        start, stop = state.window.start, state.window.stop
        # counted step by step: what a stop rule closes later was committed all the same
        committed = (state.committed_at == state.step[:, None] - 1).sum(1)
        since = torch.where(memory.since < 0, self.refresh_tokens, memory.since + committed)
        refresh = state.open & (since >= self.refresh_tokens)
        before = torch.maximum(start - memory.start, torch.full_like(start, self.prefix_window))
        first = torch.maximum(start - before, state.pad - state.prompt_width)
        last = torch.minimum(stop + self.suffix_window, state.visible)
        score = score & self.scored(state, refresh, first, torch.minimum(stop, last))
        plans = full_plan(state, refresh, score, keep=True)
        plans += partial_plan(state, state.open & ~refresh, first, last, score, state.visible, memory.extra)
        return plans, Refreshed(memory.extra, start, torch.where(refresh, 0, since))

    def scored(self, state: DecodeState, refresh: Tensor, first: Tensor, stop: Tensor) -> Tensor:
        """[B, G] bool: positions that may be proposed, those before `stop` [B]; `refresh` and `first` say what is recomputed."""
        return torch.arange(state.gen_length, device=stop.device) < stop[:, None]
