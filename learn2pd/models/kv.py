"""The keys and values that are kept between the forwards of a run, in static buffers that are written in place.

The keys are kept after rotation, which is possible because a column's position never changes during a run.

In the shapes, R is the number of rows of a plan, Q of its query columns, S of its shadow columns, K of the columns of
its span.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.types import ForwardPlan


class KVStore:
    """Buffers of one run.

    Args:
        layers: The number of layers.
        rows: The rows of the batch.
        columns: The columns of the batch.
        heads: The heads of keys and values.
        head_width: The features of a head.
        dtype: The type of the numbers.
        device: The device of the buffers.
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
        self.keys = torch.zeros(layers, rows, columns, heads, head_width, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    def view(self, plan: ForwardPlan) -> KVView | None:
        """Return the store as the forward of one plan uses it, or None where the plan keeps nothing."""
        return None if plan.span is None else KVView(self, plan)


class KVView:
    """Writes the columns that a plan recomputes, and reads the columns to which it attends.

    Shadow columns are attended to, but never written.

    Args:
        store: The buffers of the run.
        plan: A plan with a span.
    """

    def __init__(self, store: KVStore, plan: ForwardPlan) -> None:
        assert plan.span is not None
        self.store = store
        self.rows = plan.rows[:, None]
        self.query = plan.query
        self.span = slice(*plan.span)
        self.all_rows = len(plan.rows) == store.rows

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values of a layer, and return those to which the query attends.

        Args:
            layer: The number of the layer.
            keys: [R, heads, Q + S, head_width], of the query columns and the shadow columns.
            values: The same shape.

        Returns:
            Keys and values [R, heads, K + S, head_width] of the span and the shadow columns.
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
