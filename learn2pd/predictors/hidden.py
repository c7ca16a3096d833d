"""Hidden states of the model as channels: a fixed map makes a few numbers of them at every position.

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
    canvas = torch.zeros(*prediction.valid.shape, projection.shape[1], device=projection.device)
    canvas[prediction.valid] = (prediction.hidden.float() @ projection).half().float()
    position, inside = window_positions(window, width)
    position = position.clamp_max(canvas.shape[1] - 1)[..., None].expand(-1, -1, canvas.shape[2])
    return canvas.gather(1, position).masked_fill(~inside[..., None], 0)
