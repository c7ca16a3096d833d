"""Dynamic sliding block (DSB, arXiv 2602.05992)."""

from __future__ import annotations

import torch

from learn2pd.schedulers.blocks import at_least, leftmost_mask
from learn2pd.types import DecodeState, ModelSpec, Prediction, Window


class DSBScheduler:
    """Dynamic sliding block (DSB, arXiv 2602.05992): the window starts at the leftmost mask and slides with every commit.

    It ends at block_length + (tokens committed so far); with `mode="const"` it is at most `block_length` long, with `mode="greedy"` it
    grows whenever inner tokens are committed first.

    Args:
        block_length: tokens of the first window.
        mode: `const` or `greedy`.
        leak: positions behind the window that may be committed too; only `DSBCache(reference_quirks=True)` needs it.
    """

    name, alignment, slides = "dsb", "sliding", True

    def __init__(self, block_length: int = 32, mode: str = "greedy", leak: int = 0) -> None:
        if mode not in ("const", "greedy"):
            raise ValueError(f"mode={mode!r}: expected const or greedy")
        self.block_length, self.mode, self.leak = at_least(1, "block_length", block_length), mode, at_least(0, "leak", leak)

    def check_model(self, spec: ModelSpec) -> None:
        return None

    def propose(self, state: DecodeState) -> Window:
        start = leftmost_mask(state)
        if self.leak:  # their window does not jump over what leaked out of the last one
            start = torch.minimum(start, (state.window.stop - self.leak).clamp_min(0))
        stop = self.block_length + (state.committed_at >= 0).sum(1)
        if self.mode == "const":
            stop = torch.minimum(stop, start + self.block_length)
        return Window(start, torch.minimum(stop, state.end) + self.leak)

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window:
        return window
