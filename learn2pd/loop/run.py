"""A run: what the loop (loop.py) carries from step to step. Its rows may leave, and rows of other runs may join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from learn2pd.loop.crossing import HOST, crossed
from learn2pd.models.kv import KVStore
from learn2pd.types import DecodeState, RowMemory, Window


@dataclass(frozen=True)
class Run(RowMemory):
    """A batch on its way: its state, and what the components of the method remember of it.

    Rows of several runs of one method can be put together, if their canvases have one length.

    Attributes:
        state: The state after the last step.
        window: The window of the next step.
        policy_memory: What the policy remembers of the run.
        cache_memory: What the cache remembers of the run, on the host.
        scheduler_memory: What the scheduler remembers of the run, which no step changes.
        stop_memory: What the stop rule remembers of the run, which no step changes.
        host: The state with the window of the next step once more, on the CPU, where the forwards are planned.
        illegal: [B] bool on the host, the rows in which the policy did in the last step what it may not.
        store: The kept keys and values, which a forward changes in place; None where the cache keeps nothing.
    """

    state: DecodeState
    window: Window
    policy_memory: Any
    cache_memory: Any
    scheduler_memory: Any
    stop_memory: Any
    host: DecodeState
    illegal: Tensor
    store: KVStore | None

    @classmethod
    def stack(cls, runs: Sequence[Run]) -> Run:
        """Put the rows of several runs into one run. Prompts of different lengths are padded anew.

        Args:
            runs: The runs.
        """
        width = max(run.host.longest_prompt for run in runs)
        return super().stack([run._at_width(width) for run in runs])

    def _at_width(self, width: int) -> Run:
        """Return the run with another number of columns before the canvas."""
        added = width - self.state.prompt_width
        store = None if self.store is None else self.store.moved(added)
        return replace(self, state=self.state.moved(added), host=self.host.moved(added), store=store)


def read_to_host(
    state: DecodeState, window: Window, illegal: Tensor, before: tuple[DecodeState, DecodeState] | None = None
) -> tuple[DecodeState, Tensor]:
    """Bring a state to the host. Only what has changed is read, and this is the one wait of a step.

    Args:
        state: The state.
        window: The window of the next step.
        illegal: [B] bool.
        before: The state before, on the device and on the host, of which the values that are the same objects are not
            read again; None where there is none.

    Returns:
        The state on the host, with the window of the next step, and `illegal` on the host.
    """
    changed = {
        name: value
        for name, value in vars(state).items()
        if isinstance(value, Tensor) and (before is None or value is not getattr(before[0], name))
    }
    *copies, start, stop, illegal = crossed([*changed.values(), window.start, window.stop, illegal], HOST)
    known = state if before is None else before[1]
    copied: dict[str, Any] = dict(zip(changed, copies, strict=True))
    return replace(known, **copied, window=Window(start, stop)), illegal
