"""Inputs that have several values at a position: hidden states of the model, and the most probable tokens.

Hidden states are channels: a fixed map makes a few numbers of them at every position.

The map is a random orthogonal one. It needs no data, so that a recording can begin with its first prompt, and it keeps
distances up to noise. It depends on the two sizes alone, and is rounded to float16, so that every process has the same.
A policy stores the map with its weights, and is refused for another model, whose hidden states mean something else.

In the shapes, B is the number of rows, W of positions of a window, N of scored positions, D of features of the model, K
of numbers that are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.tensors import window_positions
from learn2pd.types import Prediction, Window

SEED = 0
NEEDED = "hidden"  # the extra for which a component asks
TOP_NEEDED = "top"  # the same for the most probable tokens


def hidden_map(model_width: int, numbers: int) -> Tensor:
    """Make the map.

    Args:
        model_width: D.
        numbers: K, at most D.

    Returns:
        [D, K] float32, whose columns are orthogonal and of unit length up to the rounding to float16.
    """
    drawn = torch.randn(model_width, numbers, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    columns, corner = torch.linalg.qr(drawn)
    signs = corner.diagonal().sign()  # LAPACK leaves the signs open
    return (columns * signs).half().float()


def in_window(projection: Tensor, prediction: Prediction, window: Window, width: int) -> Tensor:
    """Project the hidden states of a step, and cut each row's window out of them.

    Args:
        projection: [D, K] float32, the map.
        prediction: The proposals of the step, with the hidden states.
        window: The window of each row.
        width: W, at least the length of the longest window.

    Returns:
        [B, W, K] float32, rounded to float16 as recordings hold it, and 0 where nothing was scored.

    Raises:
        ValueError: No component asked for the hidden states.
    """
    if prediction.hidden is None:
        raise ValueError(
            "the prediction has no hidden states: the component that reads them must name 'hidden' in its attribute "
            "'needs'"
        )
    return _cut((prediction.hidden.float() @ projection).half().float(), prediction, window, width)


def top_in_window(prediction: Prediction, window: Window, width: int) -> tuple[Tensor, Tensor]:
    """Cut each row's window out of the most probable tokens of a step.

    Args:
        prediction: The proposals of the step, with their most probable tokens.
        window: The window of each row.
        width: W, at least the length of the longest window.

    Returns:
        [B, W, 4] long, the tokens, and [B, W, 4] float32, their probabilities, rounded to float16 as recordings hold
        them. Both are 0 where nothing was scored.

    Raises:
        ValueError: No component asked for them.
    """
    if prediction.top_ids is None or prediction.top_shares is None:
        raise ValueError(
            "the prediction has no most probable tokens: the component that reads them must name 'top' in its "
            "attribute 'needs'"
        )
    ids = _cut(prediction.top_ids, prediction, window, width)
    return ids, _cut(prediction.top_shares.half().float(), prediction, window, width)


def _cut(values: Tensor, prediction: Prediction, window: Window, width: int) -> Tensor:
    """Cut each row's window, [B, W, K], out of values [N, K] of the scored positions."""
    canvas = values.new_zeros(*prediction.valid.shape, values.shape[1])
    canvas[prediction.valid] = values
    position, inside = window_positions(window, width)
    position = position.clamp_max(canvas.shape[1] - 1)[..., None].expand(-1, -1, canvas.shape[2])
    return canvas.gather(1, position).masked_fill(~inside[..., None], 0)
