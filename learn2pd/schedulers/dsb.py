"""Dynamic sliding block (DSB, arXiv 2602.05992): the window starts at the leftmost mask and slides with every commit.

The rule: with the leftmost mask at position p and n decided tokens before its end, the window holds the positions i
with

    p <= i < block_length + n                             for `mode="greedy"`,
    p <= i < min(block_length + n, p + block_length)      for `mode="const"`.

So a greedy window ends with its mask number `block_length`. Decided tokens behind the window, such as an end of the
answer that the caller gave, do not count. With `greedy` the window grows whenever a token behind the leftmost mask is
committed first. With `const` it never has more than `block_length` tokens.

No deviation from the authors' window is known. See caches/dsb.py for the cache of the same paper.
"""

from __future__ import annotations

import torch

from learn2pd.errors import check_at_least
from learn2pd.roles import Scheduler
from learn2pd.types import DecodeState, Window


class DSBScheduler(Scheduler):
    """Dynamic sliding block.

    Args:
        block_length: The tokens of the first window, at least 1.
        mode: `const` or `greedy`.

    Raises:
        ValueError: The mode is unknown, or the length is below 1.
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
        before = state.masked.cumsum(1) - state.masked.long()  # [B, G], the masks before each position
        stop = (before < self.block_length).sum(1)
        if self.mode == "const":
            stop = torch.minimum(stop, start + self.block_length)
        return Window(start, torch.minimum(stop, state.end))
