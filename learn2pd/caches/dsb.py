"""DSB Cache (arXiv 2602.05992)."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.caches.sliding import SlidingMemory
from learn2pd.loop.plans import full_plan, partial_plan
from learn2pd.types import DecodeState, ForwardPlan


class DSBCache:
    """DSB Cache (arXiv 2602.05992): recompute the window and a few columns around it; everything again after `refresh_tokens` commits.

    The columns before the window are recomputed because tokens committed lately have unstable keys and values: `prefix_window` of them,
    or as many as the window moved by, if that is more.

    Args:
        refresh_tokens: commits since the last full forward, its own included, after which everything is recomputed.
        prefix_window, suffix_window: columns before and after the window. Defaults of the paper: 24 for LLaDA, 4 for Dream, and 0.
        reference_quirks: as the authors' code: masks in the suffix may be committed. A mask meant for the whole sequence is applied to the
            slice, so that only columns from window end + slice start on are closed. Needs the scheduler's `leak` to be `suffix_window`;
            without quirks there is no leak.
    """

    name, keeps, slides = "dsb", True, True

    def __init__(self, refresh_tokens: int = 32, prefix_window: int = 24, suffix_window: int = 0, reference_quirks: bool = False) -> None:
        for name, value, least in (("refresh_tokens", refresh_tokens, 1), ("prefix_window", prefix_window, 0), ("suffix_window", suffix_window, 0)):
            if value < least:
                raise ValueError(f"{name}={value}: expected at least {least}")
        self.refresh_tokens, self.prefix_window, self.suffix_window = refresh_tokens, prefix_window, suffix_window
        self.leak = suffix_window if reference_quirks else 0

    def start(self, state: DecodeState, shifted_logits: bool) -> SlidingMemory:
        zeros = torch.zeros_like(state.end)
        return SlidingMemory(int(shifted_logits), zeros, zeros - 1)

    def plan(self, state: DecodeState, score: Tensor, memory: SlidingMemory) -> list[ForwardPlan]:
        start, stop = state.window.start, state.window.stop - self.leak
        # counted step by step: what a stop rule closes later was committed all the same
        since = torch.where(memory.since < 0, self.refresh_tokens, memory.since + (state.committed_at == state.step - 1).sum(1))
        refresh = state.open & (since >= self.refresh_tokens)
        before = torch.maximum(start - memory.start, torch.full_like(start, self.prefix_window))
        first = torch.maximum(start - before, state.pad - state.prompt_width)
        last = torch.minimum(stop + self.suffix_window, state.visible)
        column = torch.arange(state.gen_length, device=start.device)
        closed = torch.where(refresh | (self.leak == 0), stop, stop + first + state.prompt_width - state.pad)  # from here on not to be committed
        score = score & (column < torch.minimum(closed, last)[:, None])
        memory.since, memory.start = torch.where(refresh, 0, since), start
        return full_plan(state, refresh, score, keep=True) + partial_plan(
            state, state.open & ~refresh, first, last, score, state.visible, memory.lead
        )

    def finish(self, state: DecodeState, memory: SlidingMemory) -> list[ForwardPlan]:
        return []
