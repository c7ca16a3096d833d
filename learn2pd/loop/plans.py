"""Forward plans over whole sequences and over parts of them: what every cache is built from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.types import DecodeState, ForwardPlan


def full_plan(state: DecodeState, rows: Tensor, score: Tensor, keep: bool) -> list[ForwardPlan]:
    """A plan that recomputes every column of `rows` [B] bool that is in its sequence; no plan where there are no rows."""
    chosen = rows.nonzero()[:, 0]
    if not len(chosen):
        return []
    pad, stop = state.pad[chosen], state.prompt_width + state.visible[chosen]
    first, last, mask = _keys(pad, stop)
    column = torch.arange(first, last, device=pad.device).expand(len(chosen), -1)
    wanted = functional.pad(score[chosen], (state.prompt_width, 0))[:, first:last]
    return [ForwardPlan(chosen, column, (column - pad[:, None]).clamp_min(0), mask, wanted, (first, last) if keep else None)]


def partial_plan(state: DecodeState, rows: Tensor, first: Tensor, stop: Tensor, score: Tensor, seen: Tensor, lead: int) -> list[ForwardPlan]:
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
