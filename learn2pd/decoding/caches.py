"""What a step recomputes: a cache turns the state into forward plans.

Keys and values of columns that a plan leaves out are those of the last plan that held them. Rows of one batch may be in different
phases; those that recompute everything and those that reuse go into separate plans of the same step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.types import DecodeState, ForwardPlan


class Cache(Protocol):
    name: str
    keeps: bool  # True: its plans keep keys and values
    slides: bool  # True: works where the window moves at every step, without recomputing everything each time

    def start(self, state: DecodeState, shifted_logits: bool) -> Any:
        """Memory of one run; `shifted_logits` as in the model's specification."""

    def plan(self, state: DecodeState, score: Tensor, memory: Any) -> list[ForwardPlan]:
        """The forwards of this step; `score` [B, G] bool says where proposals are wanted. A cache may score less, never more."""

    def finish(self, state: DecodeState, memory: Any) -> list[ForwardPlan]:
        """Forwards still owed when every row is done: none, but for a reference's quirk."""


class NoCache:
    """Recompute everything, in one plan for all open rows, trimmed to the columns that any of them still uses."""

    name, keeps, slides = "none", False, True

    def start(self, state: DecodeState, shifted_logits: bool) -> None:
        return None

    def plan(self, state: DecodeState, score: Tensor, memory: None) -> list[ForwardPlan]:
        return whole(state, state.open, score, keep=False)

    def finish(self, state: DecodeState, memory: None) -> list[ForwardPlan]:
        return []


@dataclass
class BlockMemory:
    lead: int  # columns before a window whose output is needed to propose its first token
    block: Tensor  # [B] long, start of the block everything was last recomputed for, -1 before
    stop: Tensor  # [B] long, end of that block
    reused: Tensor  # [B] bool, the kept values have served since then
    visible: Tensor  # [B] long, `state.visible` at that time


class BlockCache:
    """Fast-dLLM's caches (arXiv 2505.22618): everything is recomputed when a block opens, and that forward commits too.

    After it, `prefix` recomputes the block and all that follows it, `dual` the block alone, the values of the masks behind it going stale
    until the next block.

    Args:
        reference_quirks: whose quirks to reproduce. `fastdllm`: every block makes at least one forward that reuses, even if the opening
            one finished it; it commits nothing, and their later code does without. `learn2pd`: after a cut, `dual` still attends to what
            was cut. None: neither.
    """

    keeps, slides = True, False

    def __init__(self, name: str, reference_quirks: str | None = None) -> None:
        if reference_quirks not in (None, "fastdllm", "learn2pd"):
            raise ValueError(f"reference_quirks={reference_quirks!r}: expected fastdllm, learn2pd or null")
        self.name, self.reference_quirks = name, reference_quirks

    def start(self, state: DecodeState, shifted_logits: bool) -> BlockMemory:
        zeros = torch.zeros_like(state.end)
        return BlockMemory(int(shifted_logits), zeros - 1, zeros, zeros == 0, state.visible)

    def plan(self, state: DecodeState, score: Tensor, memory: BlockMemory) -> list[ForwardPlan]:
        start, stop = state.window.start, state.window.stop
        score = score & state.window.mask(state.gen_length)
        opens = state.open & (start != memory.block)
        reuses = state.open & ~opens
        plans = self._owed(state, opens, memory) + whole(state, opens, score, keep=True)
        memory.visible = torch.where(opens, state.visible, memory.visible)
        if self.name == "dual":
            seen = memory.visible if self.reference_quirks == "learn2pd" else state.visible
            plans += part(state, reuses, start, stop, score, seen, memory.lead)
        else:
            plans += part(state, reuses, start, state.visible, score, state.visible, memory.lead)
        memory.block, memory.reused = torch.where(opens, start, memory.block), torch.where(opens, False, memory.reused | reuses)
        memory.stop = torch.where(opens, stop, memory.stop)
        return plans

    def finish(self, state: DecodeState, memory: BlockMemory) -> list[ForwardPlan]:
        return self._owed(state, torch.ones_like(memory.reused), memory)

    def _owed(self, state: DecodeState, rows: Tensor, memory: BlockMemory) -> list[ForwardPlan]:
        if self.reference_quirks != "fastdllm":
            return []
        nothing = torch.zeros_like(state.masked)
        rows = rows & ~memory.reused
        memory.reused = memory.reused | rows
        return part(state, rows, memory.block, memory.stop, nothing, state.visible, memory.lead)


@dataclass
class SlidingMemory:
    lead: int
    start: Tensor  # [B] long, start of the last window
    since: Tensor  # [B] long, tokens committed since everything was last recomputed, -1 before


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
        return whole(state, refresh, score, keep=True) + part(state, state.open & ~refresh, first, last, score, state.visible, memory.lead)

    def finish(self, state: DecodeState, memory: SlidingMemory) -> list[ForwardPlan]:
        return []


class LookaheadCache:
    """APD's forward (arXiv 2506.00413): nothing right of the window is seen, and what lies far enough left of it is frozen.

    Args:
        kv_window: W; the tokens committed in the last step and the W - 1 before them are recomputed with the window, what lies left of them
            is frozen. So 0, as in the authors' code, leaves a token's column as it was when the token was still a mask. None freezes nothing.
    """

    name, keeps, slides = "lookahead", True, True

    def __init__(self, kv_window: int | None = 16) -> None:
        if kv_window is not None and kv_window < 0:
            raise ValueError(f"kv_window={kv_window}: expected at least 0, or null to freeze nothing")
        self.kv_window = kv_window

    def start(self, state: DecodeState, shifted_logits: bool) -> SlidingMemory:
        zeros = torch.zeros_like(state.end)
        return SlidingMemory(int(shifted_logits), zeros, zeros - 1)

    def plan(self, state: DecodeState, score: Tensor, memory: SlidingMemory) -> list[ForwardPlan]:
        start, stop = state.window.start, state.window.stop
        everything = state.pad - state.prompt_width
        first = everything
        if self.kv_window is not None:
            frozen = torch.maximum(memory.start - self.kv_window + 1, everything)
            first = torch.where(memory.since < 0, everything, torch.minimum(frozen, start - memory.lead))
        memory.start, memory.since = start, torch.zeros_like(memory.since)
        return part(state, state.open, first, stop, score & state.window.mask(state.gen_length), stop, 0)

    def finish(self, state: DecodeState, memory: SlidingMemory) -> list[ForwardPlan]:
        return []


def whole(state: DecodeState, rows: Tensor, score: Tensor, keep: bool) -> list[ForwardPlan]:
    """A plan that recomputes every column of `rows` [B] bool that is in its sequence; no plan where there are no rows."""
    chosen = rows.nonzero()[:, 0]
    if not len(chosen):
        return []
    pad, stop = state.pad[chosen], state.prompt_width + state.visible[chosen]
    first, last, mask = _keys(pad, stop)
    column = torch.arange(first, last, device=pad.device).expand(len(chosen), -1)
    wanted = functional.pad(score[chosen], (state.prompt_width, 0))[:, first:last]
    return [ForwardPlan(chosen, column, (column - pad[:, None]).clamp_min(0), mask, wanted, (first, last) if keep else None)]


def part(state: DecodeState, rows: Tensor, first: Tensor, stop: Tensor, score: Tensor, seen: Tensor, lead: int) -> list[ForwardPlan]:
    """A plan that recomputes columns of `rows` [B] bool and reuses what is kept of the others.

    Args:
        first, stop: [B] long, generation positions to recompute (the prompt's are negative); `lead` more are taken on the left.
        seen: [B] long, positions from here on are not attended to.
    """
    chosen = rows.nonzero()[:, 0]
    if not len(chosen):
        return []
    pad = state.pad[chosen]
    begin = torch.maximum(state.prompt_width + first[chosen] - lead, pad)
    end = state.prompt_width + stop[chosen]
    offset = torch.arange(int((end - begin).max()), device=pad.device)
    column = torch.minimum(begin[:, None] + offset, end[:, None] - 1)
    wanted = functional.pad(score[chosen], (state.prompt_width, 0)).gather(1, column) & (begin[:, None] + offset < end[:, None])
    low, high, mask = _keys(pad, state.prompt_width + seen[chosen])
    return [ForwardPlan(chosen, column, column - pad[:, None], mask, wanted, (low, high))]


def _keys(pad: Tensor, stop: Tensor) -> tuple[int, int, Tensor | None]:
    """The columns that any row attends to, and which of them each does, where that differs."""
    bounds: Sequence[int] = torch.stack((pad.min(), pad.max(), stop.min(), stop.max())).tolist()  # one host synchronisation
    if bounds[0] == bounds[1] and bounds[2] == bounds[3]:
        return bounds[0], bounds[3], None
    column = torch.arange(bounds[0], bounds[3], device=pad.device)
    return bounds[0], bounds[3], (column >= pad[:, None]) & (column < stop[:, None])
