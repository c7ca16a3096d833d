"""The layers that the families' transformers share: norm, rotary positions, attention, feed-forward.

In the shapes, R is the number of rows, Q of query columns, K of attended columns, M of columns whose outputs are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.models.kv import KVView
from learn2pd.tensors import places_of, widened

EXCHANGED = range(4, 12)  # rows of a product with a large weight that are faster as columns
LARGE_VOCABULARY = 32_768


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
    """Apply rotary positions in at least float32. Features behind the width of the tables stay as they are.

    Args:
        x: [R, heads, Q, head_width].
        tables: The cosines and sines of `rotary_tables`.

    Returns:
        The same shape and type as `x`.
    """
    cos, sin = tables
    width = cos.shape[-1]
    wide = widened(x[..., :width])
    other_half = wide.roll(width // 2, -1)
    turned = (wide * cos + other_half * sin).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)


@dataclass(frozen=True)
class Asked:
    """The columns of the last layer whose outputs somebody reads. Only they need queries and a feed-forward layer.

    Attributes:
        places: [R, M] long, the places of the columns in the query.
        tables: The cosines and sines of `rotary_tables` of these columns.
        mask: [R, 1, 1 or M, K] bool, as for `LayerCall`, of these columns.
    """

    places: Tensor
    tables: tuple[Tensor, Tensor]
    mask: Tensor | None

    @classmethod
    def at(cls, places: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None) -> Asked:
        """Choose tables and mask.

        Args:
            places: [R, M] long.
            tables: The cosines and sines of all columns of the query.
            mask: [R, 1, 1 or Q, K] bool, of all columns of the query, or None.
        """
        cos, sin = (table[:, 0].expand(len(places), -1, -1) for table in tables)
        if mask is not None and mask.shape[2] > 1:
            mask = places_of(mask[:, 0], places)[:, None]
        return cls(places, (places_of(cos, places)[:, None], places_of(sin, places)[:, None]), mask)

    def of(self, x: Tensor) -> Tensor:
        """Take the columns out of values [R, Q, D]."""
        return places_of(x, self.places)


class LayerCall(NamedTuple):
    """What a layer needs beside its input, in one forward.

    Attributes:
        tables: The cosines and sines of `rotary_tables`, of all features of a head or of the first ones.
        mask: [R, 1, 1 or Q, K] bool, True where a query attends to a column; None attends everywhere.
        kept: It keeps keys and values, and returns those of all K columns; with None, K = Q.
        layer: The number of the layer.
        asked: The columns whose outputs are read; None for all.
    """

    tables: tuple[Tensor, Tensor]
    mask: Tensor | None
    kept: KVView | None
    layer: int
    asked: Asked | None

    def at_asked(self, x: Tensor) -> Tensor:
        """Take the columns whose outputs are read out of values [R, Q, D]."""
        return x if self.asked is None else self.asked.of(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Compute attention of the query columns to themselves or, with `kept`, to the columns of its span.

        Args:
            q: [R, Q or M, n_heads, head_width], before rotation; of the columns whose outputs are read.
            k: [R, Q, n_kv_heads, head_width], before rotation.
            v: [R, Q, n_kv_heads, head_width].

        Returns:
            [R, Q or M, n_heads * head_width].
        """
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [R, heads, Q, head_width]
        k = rotate(k, self.tables)
        tables, mask = (self.tables, self.mask) if self.asked is None else (self.asked.tables, self.asked.mask)
        q = rotate(q, tables)
        if self.kept is not None:
            k, v = self.kept.update(self.layer, k, v)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != q.shape[1])
        return mixed.transpose(1, 2).flatten(2)


def project(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply hidden states with the weight of the vocabulary, as a linear layer without bias does.

    Args:
        x: [N, D], or [..., D].
        weight: [V, D].

    Returns:
        [N, V], or [..., V].
    """
    # For these numbers of rows, the library behind torch repacks the whole weight in each call on a CPU, which takes up
    # to twice as long as the product with both sides exchanged. In bfloat16 the exchange does not pay.
    whole = x.ndim == 2 and x.device.type == "cpu" and x.dtype == torch.float32
    if whole and len(x) in EXCHANGED and len(weight) >= LARGE_VOCABULARY:
        return (weight @ x.t()).t().contiguous()
    return functional.linear(x, weight)


class SwiGLU(nn.Module):
    """The feed-forward layer under the names of Qwen: `gate_proj`, `up_proj`, `down_proj`.

    Args:
        width: The features of a token.
        inner_width: The features inside the layer.
    """

    def __init__(self, width: int, inner_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner_width, bias=False)
        self.up_proj = nn.Linear(width, inner_width, bias=False)
        self.down_proj = nn.Linear(inner_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
