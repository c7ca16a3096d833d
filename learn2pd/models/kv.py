"""Keys and values kept between the forwards of a run: static buffers, written in place.

Keys are kept after rotation: a column's position never changes during a run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.types import ForwardPlan


class KVStore:
    """Buffers of one run.

    Args:
        layers, rows, columns, heads, head_width: sizes; `heads` are those of keys and values.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        columns: int,
        heads: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rows = rows
        self.keys, self.values = (
            torch.zeros(layers, rows, columns, heads, head_width, dtype=dtype, device=device) for _ in range(2)
        )

    def view(self, plan: ForwardPlan) -> KVView | None:
        """The store as one forward uses it; None where the plan keeps nothing."""
        return None if plan.span is None else KVView(self, plan)


class KVView:
    """Writes the columns a plan recomputes and reads the columns it attends to; shadow columns are attended to and not written."""

    def __init__(self, store: KVStore, plan: ForwardPlan) -> None:
        assert plan.span is not None
        self.store = store
        self.rows = plan.rows[:, None]
        self.query = plan.query
        self.span = slice(*plan.span)
        self.all_rows = len(plan.rows) == store.rows

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what is new and hand out what is attended to.

        Args:
            layer: number of the layer.
            keys, values: [R, heads, Q + S, head_width] of the plan's query and its shadow columns.

        Returns:
            Keys and values [R, heads, K + S, head_width] of the plan's span and its shadow columns.
        """
        return self._update(self.store.keys[layer], keys), self._update(self.store.values[layer], values)

    def _update(self, buffer: Tensor, new: Tensor) -> Tensor:
        queries = self.query.shape[1]
        buffer[self.rows, self.query] = new[:, :, :queries].transpose(1, 2).to(buffer.dtype)
        columns = buffer[:, self.span]
        attended = (columns if self.all_rows else columns[self.rows[:, 0]]).transpose(1, 2)
        if new.shape[2] == queries:
            return attended
        return torch.cat((attended, new[:, :, queries:].to(buffer.dtype)), dim=2)
