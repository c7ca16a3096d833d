"""Dynamic sliding block (DSB, arXiv 2602.05992): the window starts at the leftmost mask and slides with every commit.

It ends at block_length + (tokens decided so far). With `mode="const"` it is at most `block_length` long; with `mode="greedy"` it grows
whenever inner tokens are committed first.
"""

from __future__ import annotations

import torch

from learn2pd.errors import check_at_least
from learn2pd.roles import Scheduler
from learn2pd.types import DecodeState, Window


class DSBScheduler(Scheduler):
    """Dynamic sliding block.

    Args:
        block_length: tokens of the first window.
        mode: `const` or `greedy`.

    Raises:
        ValueError: for another mode or a length below 1.
    """

    name = "dsb"
    alignment = "sliding"
    slides = True

    def __init__(self, block_length: int = 32, mode: str = "greedy") -> None:
        if mode not in ("const", "greedy"):
            raise ValueError(f"mode={mode!r}: expected const or greedy")
        self.block_length = check_at_least(1, "block_length", block_length)
        self.mode = mode

    def propose(self, state: DecodeState, memory: None) -> Window:
        start = state.leftmost_mask
        stop = self.block_length + state.decided.sum(1)
        if self.mode == "const":
            stop = torch.minimum(stop, start + self.block_length)
        return Window(start, torch.minimum(stop, state.end))
