"""The layers that LLaDA's and Dream's transformers share: norm, rotary positions, attention over kept keys and values.

In the shapes, R is the number of rows, Q of query columns, K of attended columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.models.kv import KVView
from learn2pd.tensors import widened


class RMSNorm(nn.Module):
    """Root-mean-square norm.

    As in the original models, the norm is computed in at least float32 and cast back before the weight is applied.

    Args:
        width: The number of features.
        eps: The number that is added to the mean square.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.rms_norm(widened(x), (x.shape[-1],), eps=self.eps)
        return self.weight * normed.to(x.dtype)


def rotary_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Compute the tables of rotary positions.

    Args:
        positions: [R, Q] long, absolute positions.
        head_width: The features of a head.
        theta: The base of the rotation.

    Returns:
        Cosines and sines, each [R, 1, Q, head_width] float32. The sines of the first half are negative.
    """
    inverse = 1.0 / theta ** (torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width)
    angles = positions[..., None].float() * inverse
    angles = torch.cat((-angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions in at least float32.

    Args:
        x: [R, heads, Q, head_width].
        tables: The cosines and sines of `rotary_tables`.

    Returns:
        The same shape and type as `x`.
    """
    cos, sin = tables
    wide = widened(x)
    other_half = wide.roll(wide.shape[-1] // 2, -1)
    return (wide * cos + other_half * sin).to(x.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, kept: KVView | None, layer: int
) -> Tensor:
    """Compute bidirectional attention of the query columns to themselves or, with `kept`, to the columns of its span.

    Args:
        q: [R, Q, n_heads * head_width], before rotation.
        k: [R, Q, n_kv_heads * head_width], before rotation.
        v: [R, Q, n_kv_heads * head_width].
        tables: The cosines and sines of `rotary_tables`.
        mask: [R, 1, 1 or Q, K] bool, True where a query attends to a column; None attends everywhere.
        kept: It keeps k and v, and returns those of all K columns; with None, K = Q.
        layer: The number of the layer.

    Returns:
        [R, Q, n_heads * head_width].
    """
    rows, width, _ = q.shape
    head_width = tables[0].shape[-1]
    q, k, v = (x.view(rows, width, -1, head_width).transpose(1, 2) for x in (q, k, v))  # [R, heads, Q, head_width]
    q = rotate(q, tables)
    k = rotate(k, tables)
    if kept is not None:
        k, v = kept.update(layer, k, v)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != q.shape[1])
    return mixed.transpose(1, 2).reshape(rows, width, -1)
