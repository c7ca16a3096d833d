"""Small tensor functions that several roles share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.types import Window


def is_among(tokens: Tensor, ids: tuple[int, ...]) -> Tensor:
    """[...] bool: which tokens are one of a few ids."""
    among = torch.zeros_like(tokens, dtype=torch.bool)
    for token in ids:  # compared one by one: building a tensor of the ids would wait for the device
        among = among | (tokens == token)
    return among


def after_first(mask: Tensor) -> Tensor:
    """[B] long: one past the first True of [B, G], or G where no entry is."""
    return torch.where(mask.any(1), mask.int().argmax(1) + 1, mask.shape[1])


def most_confident(confidence: Tensor, eligible: Tensor, count: Tensor | int = 1) -> Tensor:
    """[B, G] bool: the `count` ([B] or one number) most confident eligible positions of each row, the leftmost first on a tie."""
    if isinstance(count, int) and count == 1:
        best = confidence.masked_fill(~eligible, -torch.inf).argmax(1, keepdim=True)
        return torch.zeros_like(eligible).scatter_(1, best, True) & eligible
    order = confidence.masked_fill(~eligible, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    limit = count if isinstance(count, int) else count[:, None]
    return (rank < limit) & eligible


def window_view(values: Tensor, window: Window, width: int) -> Tensor:
    """[B, W] the entries of [B, G] that each row's window covers, zeros past its end."""
    offset = torch.arange(width, device=values.device)
    position = window.start[:, None] + offset  # [B, W], may run past the canvas
    inside = position < window.stop[:, None]
    return functional.pad(values, (0, width)).gather(1, position).masked_fill(~inside, 0)


def canvas_view(values: Tensor, window: Window, gen_length: int) -> Tensor:
    """The reverse: [B, G] with the entries of [B, W] at each row's window, False or 0 elsewhere."""
    width = values.shape[1]
    position = window.start[:, None] + torch.arange(width, device=values.device)
    canvas = values.new_zeros(len(values), gen_length + width).scatter_(1, position, values)
    return canvas[:, :gen_length]


def widened(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
