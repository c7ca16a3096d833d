"""APD's forward (arXiv 2506.00413): it leaves out the columns right of the window and reuses columns far left of it.

The rule: with the last window at `last`, the present one at start <= i < stop, and W = `kv_window`, a step recomputes
the positions i with

    last - W + 1 <= i < stop.

It also recomputes the column before the window where the model needs its output. The keys and values of the columns
left of that are frozen. No query attends to a column at or behind `stop`.

Deviations from the authors' code: none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.errors import check_at_least
from learn2pd.loop.plans import partial_plan
from learn2pd.roles import Cache
from learn2pd.types import DecodeState, ForwardPlan, ModelSpec, RowMemory


@dataclass(frozen=True)
class LastWindow(RowMemory):
    """The last window.

    Attributes:
        start: [B] long, the start of the last window, -1 before the first window.
    """

    start: Tensor


class LookaheadCache(Cache):
    """APD's forward.

    Args:
        kv_window: W. The tokens that were committed in the last step, and the W - 1 tokens before them, are recomputed
            with the window. The columns left of them are frozen. With 0, as in the authors' code, the column of a token
            stays as it was while the token was still a mask. None freezes no column.

    Raises:
        ValueError: The number is negative.
    """

    name = "lookahead"
    slides = True

    def __init__(self, kv_window: int | None = 16) -> None:
        self.kv_window = None if kv_window is None else check_at_least(0, "kv_window", kv_window)

    def start(self, state: DecodeState, spec: ModelSpec) -> LastWindow:
        return LastWindow(torch.full_like(state.end, -1))

    def plan(self, state: DecodeState, score: Tensor, memory: LastWindow) -> tuple[list[ForwardPlan], LastWindow]:
        start = state.window.start
        stop = state.window.stop
        everything = state.pad - state.prompt_width
        first = everything
        if self.kv_window is not None:
            frozen = torch.maximum(memory.start - self.kv_window + 1, everything)
            first = torch.where(memory.start < 0, everything, torch.minimum(frozen, start - state.spec.shift))
        score = score & state.window.mask(state.gen_length)
        return partial_plan(state, state.open, first, stop, score, stop, 0), LastWindow(start)
