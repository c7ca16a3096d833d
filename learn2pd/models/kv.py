"""The keys and values that are kept between the forwards of a run, in buffers that are written in place.

The buffers reach as far as the forwards have come, so that their memory follows the answer where the canvas is long.

The keys are kept after rotation, which is possible because a column's position never changes during a run.

In the shapes, R is the number of rows of a plan, Q of its query columns, S of its shadow columns, K of the columns of
its span.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.types import ForwardPlan, RowMemory


class KVStore(RowMemory):
    """Buffers of one run. Each layer has one of keys and one of values, [B, columns so far, heads, head_width].

    A forward writes into them; `rows`, `stack` and `moved` make new ones. The buffers of a layer are on its device.

    Args:
        keys: The keys by layer.
        values: The values by layer.
        columns: The columns of the batch, which no buffer exceeds.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], columns: int) -> None:
        self.keys = keys
        self.values = values
        self.columns = columns

    @property
    def nbytes(self) -> int:
        """The bytes of all buffers."""
        return sum(buffer.nbytes for buffer in (*self.keys, *self.values))

    @property
    def reached(self) -> int:
        """The columns that the buffers hold so far."""
        return self.keys[0].shape[1]

    def rows(self, index: Tensor) -> KVStore:
        return self._each(lambda buffer: buffer[index.to(buffer.device, non_blocking=True)], self.columns)

    @classmethod
    def stack(cls, memories: Sequence[KVStore]) -> KVStore:
        longest = max(store.reached for store in memories)
        for store in memories:
            store._reach(longest)
        keys = [torch.cat(buffers) for buffers in zip(*(store.keys for store in memories), strict=True)]
        values = [torch.cat(buffers) for buffers in zip(*(store.values for store in memories), strict=True)]
        return cls(keys, values, memories[0].columns)

    def moved(self, added: int) -> KVStore:
        """Return buffers with more columns of left padding, or with fewer of them.

        Args:
            added: As for `DecodeState.moved`.
        """

        def of(buffer: Tensor) -> Tensor:
            return buffer[:, -added:] if added < 0 else functional.pad(buffer, (0, 0, 0, 0, added, 0))

        return self._each(of, self.columns + added)

    def view(self, plan: ForwardPlan) -> KVView | None:
        """Return the store as the forward of one plan uses it, or None where the plan keeps nothing."""
        if plan.span is None:
            return None
        self._reach(plan.span[1])
        return KVView(self, plan)

    def _reach(self, columns: int) -> None:
        """Lengthen the buffers where they end before a column, by half of what they hold at least."""
        held = self.reached
        if columns > held:
            added = min(self.columns, max(columns, held + held // 2)) - held
            for buffers in (self.keys, self.values):
                for layer, buffer in enumerate(buffers):  # one at a time, so that no two copies of all are alive
                    buffers[layer] = functional.pad(buffer, (0, 0, 0, 0, 0, added))

    def _each(self, change: Callable[[Tensor], Tensor], columns: int) -> KVStore:
        return KVStore([change(buffer) for buffer in self.keys], [change(buffer) for buffer in self.values], columns)


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
        self.queries = plan.query.shape[1]
        self.span = slice(*plan.span)
        self.all_rows = len(plan.rows) == len(store.keys[0])
        self._places = {plan.query.device: (plan.rows[:, None], plan.query)}

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
        rows, query = self._on(buffer.device)
        buffer[rows, query] = new[:, :, : self.queries].transpose(1, 2).to(buffer.dtype)
        columns = buffer[:, self.span]
        attended = (columns if self.all_rows else columns[rows[:, 0]]).transpose(1, 2)
        if new.shape[2] == self.queries:
            return attended
        return torch.cat((attended, new[:, :, self.queries :].to(buffer.dtype)), dim=2)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the rows [R, 1] and the query columns [R, Q] of the plan on a device."""
        if device not in self._places:
            rows, query = next(iter(self._places.values()))
            self._places[device] = (rows.to(device, non_blocking=True), query.to(device, non_blocking=True))
        return self._places[device]
