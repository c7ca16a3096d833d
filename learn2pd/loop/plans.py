"""The two functions from which every cache builds its forward plans: plans over whole sequences and over parts of them.

A plan that leaves out a column reuses the keys and values that the last plan with this column kept. Rows of one batch
may be in different phases: the rows that recompute everything and the rows that reuse columns go into separate plans of
the same step.

In the shapes, B is the number of rows of the batch and G the number of positions of the canvas.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.types import DecodeState, ForwardPlan


def full_plan(state: DecodeState, rows: Tensor, score: Tensor, keep: bool) -> list[ForwardPlan]:
    """Plan a forward that recomputes all columns of some rows. Columns that a stop rule cut are left out.

    Args:
        state: The state before the forward.
        rows: [B] bool, the rows that take part.
        score: [B, G] bool, the positions for which the model proposes a token.
        keep: True keeps the keys and values.

    Returns:
        One plan, or no plan where no row takes part.
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
    """Plan a forward that recomputes some columns of some rows and reuses the kept keys and values of the others.

    Args:
        state: The state before the forward.
        rows: [B] bool, the rows that take part.
        first: [B] long, the first generation position that is recomputed. Positions of the prompt are negative.
        stop: [B] long, the generation position before which recomputing ends.
        score: [B, G] bool, the positions for which the model proposes a token.
        seen: [B] long, the first generation position to which no query attends.
        extra: The number of columns left of `first` that are recomputed too.

    Returns:
        One plan, or no plan where no row takes part.
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
    """Return the first and the last column (exclusive) to which any row attends, and the columns of each row.

    The columns of each row are a mask [R, K] bool; the mask is None where all rows attend to the same columns.
    """
    pads, stops = torch.stack((pad, stop)).tolist()  # one transfer to the host
    first = min(pads)
    last = max(stops)
    if first == max(pads) and last == min(stops):
        return first, last, None
    column = torch.arange(first, last, device=pad.device)
    return first, last, (column >= pad[:, None]) & (column < stop[:, None])
