"""Forward plans over whole sequences and over parts of them: what every cache is built from.

Keys and values of columns that a plan leaves out are those of the last plan that held them. Rows of one batch may be in different
phases; those that recompute everything and those that reuse go into separate plans of the same step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.types import DecodeState, ForwardPlan


def full_plan(state: DecodeState, rows: Tensor, score: Tensor, keep: bool) -> list[ForwardPlan]:
    """A plan that recomputes every column of `rows` [B] bool that is in its sequence; no plan where there are no rows.

    Args:
        score: [B, G] bool, positions whose token is to be proposed.
        keep: True keeps the keys and values.
    """
    numbers = rows.nonzero()[:, 0]
    if not len(numbers):
        return []
    pad = state.pad[numbers]
    stop = state.prompt_width + state.visible[numbers]
    first, last, mask = _keys(pad, stop)
    column = torch.arange(first, last, device=pad.device).expand(len(numbers), -1)
    wanted = functional.pad(score[numbers], (state.prompt_width, 0))[:, first:last]
    position = (column - pad[:, None]).clamp_min(0)
    return [ForwardPlan(numbers, column, position, mask, wanted, stop - pad, (first, last) if keep else None)]


def partial_plan(
    state: DecodeState, rows: Tensor, first: Tensor, stop: Tensor, score: Tensor, seen: Tensor, extra: int
) -> list[ForwardPlan]:
    """A plan that recomputes columns of `rows` [B] bool and reuses what is kept of the others.

    Args:
        first, stop: [B] long, generation positions to recompute; the prompt's are negative.
        score: [B, G] bool, positions whose token is to be proposed.
        seen: [B] long, positions from here on are not attended to.
        extra: columns that are recomputed on the left of `first` too.
    """
    numbers = rows.nonzero()[:, 0]
    if not len(numbers):
        return []
    pad = state.pad[numbers]
    begin = torch.maximum(state.prompt_width + first[numbers] - extra, pad)
    end = state.prompt_width + stop[numbers]
    offset = torch.arange(int((end - begin).max()), device=pad.device)
    column = torch.minimum(begin[:, None] + offset, end[:, None] - 1)
    inside = begin[:, None] + offset < end[:, None]
    wanted = functional.pad(score[numbers], (state.prompt_width, 0)).gather(1, column) & inside
    low, high, mask = _keys(pad, state.prompt_width + seen[numbers])
    return [ForwardPlan(numbers, column, column - pad[:, None], mask, wanted, end - begin, (low, high))]


def _keys(pad: Tensor, stop: Tensor) -> tuple[int, int, Tensor | None]:
    """The columns that any row attends to, and which of them each does, where that differs."""
    bounds: Sequence[int] = torch.stack(
        (pad.min(), pad.max(), stop.min(), stop.max())
    ).tolist()  # one host synchronisation
    if bounds[0] == bounds[1] and bounds[2] == bounds[3]:
        return bounds[0], bounds[3], None
    column = torch.arange(bounds[0], bounds[3], device=pad.device)
    return bounds[0], bounds[3], (column >= pad[:, None]) & (column < stop[:, None])
