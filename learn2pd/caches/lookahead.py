"""APD's forward (arXiv 2506.00413): nothing right of the window is seen, and what lies far enough left of it is frozen.

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
    """Where the window was."""

    extra: int  # columns before a window whose output is needed to propose its first token
    start: Tensor  # [B] long, start of the last window, -1 before the first


class LookaheadCache(Cache):
    """APD's forward.

    Args:
        kv_window: W. The tokens that were committed in the last step and the W - 1 before them are recomputed with the window; what lies left
            of them is frozen. With 0, as in the authors' code, a token's column stays as it was when the token was still a mask. None
            freezes nothing.

    Raises:
        ValueError: for a negative number.
    """

    name = "lookahead"
    slides = True

    def __init__(self, kv_window: int | None = 16) -> None:
        self.kv_window = None if kv_window is None else check_at_least(0, "kv_window", kv_window)

    def start(self, state: DecodeState, spec: ModelSpec) -> LastWindow:
        return LastWindow(int(spec.shifted_logits), torch.full_like(state.end, -1))

    def plan(self, state: DecodeState, score: Tensor, memory: LastWindow) -> tuple[list[ForwardPlan], LastWindow]:
        start, stop = state.window.start, state.window.stop
        everything = state.pad - state.prompt_width
        first = everything
        if self.kv_window is not None:
            frozen = torch.maximum(memory.start - self.kv_window + 1, everything)
            first = torch.where(memory.start < 0, everything, torch.minimum(frozen, start - memory.extra))
        score = score & state.window.mask(state.gen_length)
        return partial_plan(state, state.open, first, stop, score, stop, 0), LastWindow(memory.extra, start)
