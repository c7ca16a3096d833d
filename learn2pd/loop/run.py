"""A run: what the loop (loop.py) carries from step to step. Its rows may leave, and rows of other runs may join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from learn2pd.models.kv import KVStore
from learn2pd.types import DecodeState, RowMemory


@dataclass(frozen=True)
class Run(RowMemory):
    """A batch on its way: its state, and what the components of the method remember of it.

    Rows of several runs of one method can be put together, if their canvases have one length.

    Attributes:
        state: The state after the last step.
        policy: The memory of the policy, as the next ones of the other roles.
        cache: The plan memory.
        scheduler: The memory of the windows.
        stop: The memory of the endings.
        last_given: [B] long, the position behind the last token that the caller gave.
        illegal: [B] bool, the rows in which the policy did in the last step what it may not.
        store: The kept keys and values; None where the cache keeps nothing.
    """

    state: DecodeState
    policy: Any
    cache: Any
    scheduler: Any
    stop: Any
    last_given: Tensor
    illegal: Tensor
    store: KVStore | None

    @classmethod
    def stack(cls, runs: Sequence[Run]) -> Run:
        """Put the rows of several runs into one run. Prompts of different lengths are padded anew.

        Args:
            runs: The runs.
        """
        width = max(run.state.longest_prompt for run in runs)
        return super().stack([run._at_width(width) for run in runs])

    def _at_width(self, width: int) -> Run:
        """Return the run with another number of columns before the canvas."""
        added = width - self.state.prompt_width
        store = None if self.store is None else self.store.moved(added)
        return replace(self, state=self.state.moved(added), store=store)
