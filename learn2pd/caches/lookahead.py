"""APD's forward (arXiv 2506.00413)."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.caches.sliding import SlidingMemory
from learn2pd.loop.plans import partial_plan
from learn2pd.types import DecodeState, ForwardPlan


class LookaheadCache:
    """APD's forward (arXiv 2506.00413): nothing right of the window is seen, and what lies far enough left of it is frozen.

    Args:
        kv_window: W; the tokens committed in the last step and the W - 1 before them are recomputed with the window, what lies left of them
            is frozen. So 0, as in the authors' code, leaves a token's column as it was when the token was still a mask. None freezes nothing.
    """

    name, keeps, slides = "lookahead", True, True

    def __init__(self, kv_window: int | None = 16) -> None:
        if kv_window is not None and kv_window < 0:
            raise ValueError(f"kv_window={kv_window}: expected at least 0, or null to freeze nothing")
        self.kv_window = kv_window

    def start(self, state: DecodeState, shifted_logits: bool) -> SlidingMemory:
        zeros = torch.zeros_like(state.end)
        return SlidingMemory(int(shifted_logits), zeros, zeros - 1)

    def plan(self, state: DecodeState, score: Tensor, memory: SlidingMemory) -> list[ForwardPlan]:
        start, stop = state.window.start, state.window.stop
        everything = state.pad - state.prompt_width
        first = everything
        if self.kv_window is not None:
            frozen = torch.maximum(memory.start - self.kv_window + 1, everything)
            first = torch.where(memory.since < 0, everything, torch.minimum(frozen, start - memory.lead))
        memory.start, memory.since = start, torch.zeros_like(memory.since)
        return partial_plan(state, state.open, first, stop, score & state.window.mask(state.gen_length), stop, 0)

    def finish(self, state: DecodeState, memory: SlidingMemory) -> list[ForwardPlan]:
        return []
