"""What LLaDA's and Dream's transformers share: norm, rotary positions, attention over kept keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.models.kv import KVView
from learn2pd.tensors import widened


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in at least float32 and cast back before the weight, as the original models do."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.rms_norm(widened(x), (x.shape[-1],), eps=self.eps)
        return self.weight * normed.to(x.dtype)


def rotary_tables(positions: Tensor, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [R, 1, Q, head_width] float32, for absolute positions [R, Q]."""
    inverse = 1.0 / theta ** (torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float32) / head_width)
    angles = positions[..., None].float() * inverse
    angles = torch.cat((angles, angles), dim=-1)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to [R, heads, Q, head_width] in at least float32."""
    cos, sin = tables
    wide = widened(x)
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def attend(
    q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, kept: KVView | None, layer: int
) -> Tensor:
    """Bidirectional attention of the queries to themselves or, with `kept`, to every column kept so far.

    Args:
        q: [R, Q, n_heads * head_width] before rotation; k, v: [R, Q, n_kv_heads * head_width].
        mask: [R, 1, 1 or Q, K] bool, True where attended; None attends everywhere.
        kept: stores k and v and hands back those of all K columns; None: K = Q.

    Returns:
        [R, Q, n_heads * head_width].
    """
    rows, width, _ = q.shape
    head_width = tables[0].shape[-1]
    q, k, v = (x.view(rows, width, -1, head_width).transpose(1, 2) for x in (q, k, v))  # [R, heads, Q, head_width]
    q, k = rotate(q, tables), rotate(k, tables)
    if kept is not None:
        k, v = kept.update(layer, k, v)
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != q.shape[1])
    return mixed.transpose(1, 2).reshape(rows, width, -1)
