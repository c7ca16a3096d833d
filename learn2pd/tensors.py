"""Small tensor functions that several roles share.

In the shapes, B is the number of rows, G the number of positions of the canvas, and W the number of positions of a
window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.types import DecodeState, Window


def is_among(tokens: Tensor, ids: tuple[int, ...]) -> Tensor:
    """Mark the tokens that are one of a few ids.

    Args:
        tokens: [...] long, of any shape.
        ids: The ids to look for.

    Returns:
        [...] bool, of the shape of `tokens`.
    """
    among = torch.zeros_like(tokens, dtype=torch.bool)
    for token in ids:  # the ids are compared one by one, since building a tensor of them would wait for the device
        among = among | (tokens == token)
    return among


def may_end(state: DecodeState, tokens: Tensor) -> Tensor:
    """Mark the end-of-texts behind which a row may end: those with no token behind them that the caller gave.

    Args:
        state: The state of the row.
        tokens: [B, G] long, tokens of the canvas or proposals.

    Returns:
        [B, G] bool.
    """
    return is_among(tokens, state.spec.eot_ids) & state.behind_given


def cell_start(state: DecodeState, position: Tensor, length: int) -> Tensor:
    """Return where the cell of the absolute grid starts that holds a position; the prompt's first token starts one.

    Args:
        state: The state.
        position: [B] long, a generation position of each row.
        length: The tokens of a cell.

    Returns:
        [B] long, a generation position; negative inside the prompt.
    """
    return position - (position + state.prompt_width - state.pad) % length


def after_first(mask: Tensor) -> Tensor:
    """Return the position behind the first True of each row.

    Args:
        mask: [B, G] bool.

    Returns:
        [B] long, one more than the position of the first True, or G for a row without any True.
    """
    behind = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return torch.where(mask, behind, mask.shape[1]).amin(1)


def most_confident(confidence: Tensor, eligible: Tensor, count: Tensor | int = 1) -> Tensor:
    """Mark the most confident eligible positions of each row. On a tie the leftmost position comes first.

    Args:
        confidence: [B, G] float.
        eligible: [B, G] bool, the positions that may be marked.
        count: How many positions are marked: one number for all rows, or [B] long with a number for each row. A row
            with fewer eligible positions has all of them marked.

    Returns:
        [B, G] bool.
    """
    if isinstance(count, int) and count == 1:
        best = confidence.masked_fill(~eligible, -torch.inf).argmax(1, keepdim=True)
        return torch.zeros_like(eligible).scatter_(1, best, True) & eligible
    order = confidence.masked_fill(~eligible, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    limit = count if isinstance(count, int) else count[:, None]
    return (rank < limit) & eligible


def places_of(x: Tensor, places: Tensor) -> Tensor:
    """Take some places out of each row.

    Args:
        x: [R, Q, D].
        places: [R, M] long.

    Returns:
        [R, M, D].
    """
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def window_view(values: Tensor, window: Window, width: int) -> Tensor:
    """Cut each row's window out of values over the canvas.

    Args:
        values: [B, G].
        window: The window of each row.
        width: W, at least the length of the longest window.

    Returns:
        [B, W], the values from the window's start on, with zeros behind the window's end.
    """
    position, inside = window_positions(window, width)
    return values.gather(1, position.clamp_max(values.shape[1] - 1)).masked_fill(~inside, 0)


def window_positions(window: Window, width: int) -> tuple[Tensor, Tensor]:
    """Return the positions from each row's window's start on.

    Args:
        window: The window of each row.
        width: W.

    Returns:
        [B, W] long, the positions, of which some may lie behind the canvas, and [B, W] bool, those inside the window.
    """
    position = window.start[:, None] + torch.arange(width, device=window.start.device)
    return position, position < window.stop[:, None]


def canvas_view(values: Tensor, window: Window, gen_length: int) -> Tensor:
    """Put values over each row's window back into a canvas. This is the reverse of `window_view`.

    Args:
        values: [B, W].
        window: The window of each row.
        gen_length: G.

    Returns:
        [B, G], with False or 0 outside the window.
    """
    width = values.shape[1]
    position, _ = window_positions(window, width)
    canvas = values.new_zeros(len(values), gen_length + width).scatter_(1, position, values)
    return canvas[:, :gen_length]


def revisable(state: DecodeState, revisions: int) -> Tensor:
    """Mark the committed positions of each row's window that a policy may take back or overwrite in this step.

    Args:
        state: The state before the commit.
        revisions: The number of steps, from the first one on, in which the policy may do so.

    Returns:
        [B, G] bool.
    """
    rows = state.open & (state.step < revisions)
    return state.window.mask(state.gen_length) & state.decided & ~state.given & rows[:, None]


def widened(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged where its type is already wider than float32."""
    return x if x.dtype.itemsize > torch.float16.itemsize else x.float()
