"""The keys and values that are kept between the forwards of a run, in buffers that are written in place.

The buffers reach as far as the forwards have come, so that their memory follows the answer where the canvas is long.

The keys are kept after rotation, which is possible because a column's position never changes during a run.

In the shapes, R is the number of rows of a plan, Q of its query columns, S of its shadow columns, K of the columns of
its span.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.types import ForwardPlan, RowMemory


class KVStore(RowMemory):
    """Buffers of one run, [layers, B, columns so far, heads, head_width].

    A forward writes into them; `rows`, `stack` and `moved` make new ones.

    Args:
        keys: The keys.
        values: The values.
        columns: The columns of the batch, which no buffer exceeds.
    """

    def __init__(self, keys: Tensor, values: Tensor, columns: int) -> None:
        self.keys = keys
        self.values = values
        self.columns = columns

    def rows(self, index: Tensor) -> KVStore:
        return KVStore(self.keys[:, index], self.values[:, index], self.columns)

    @classmethod
    def stack(cls, memories: Sequence[KVStore]) -> KVStore:
        for store in memories:
            store._reach(max(other.keys.shape[2] for other in memories))
        keys = torch.cat([store.keys for store in memories], dim=1)
        return cls(keys, torch.cat([store.values for store in memories], dim=1), memories[0].columns)

    def moved(self, added: int) -> KVStore:
        """Return buffers with more columns of left padding, or with fewer of them.

        Args:
            added: As for `DecodeState.moved`.
        """

        def of(buffer: Tensor) -> Tensor:
            return buffer[:, :, -added:] if added < 0 else functional.pad(buffer, (0, 0, 0, 0, added, 0))

        return KVStore(of(self.keys), of(self.values), self.columns + added)

    def view(self, plan: ForwardPlan) -> KVView | None:
        """Return the store as the forward of one plan uses it, or None where the plan keeps nothing."""
        if plan.span is None:
            return None
        self._reach(plan.span[1])
        return KVView(self, plan)

    def _reach(self, columns: int) -> None:
        """Lengthen the buffers where they end before a column, by half of what they hold at least."""
        held = self.keys.shape[2]
        if columns > held:
            added = min(self.columns, max(columns, held + held // 2)) - held
            self.keys = functional.pad(self.keys, (0, 0, 0, 0, 0, added))
            self.values = functional.pad(self.values, (0, 0, 0, 0, 0, added))


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
        self.all_rows = len(plan.rows) == store.keys.shape[1]

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
