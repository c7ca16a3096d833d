"""APD's window (arXiv 2506.00413): the window starts at the leftmost mask and slides with every commit.

The rule: with the leftmost mask at position p and M = `max_lookahead`, the window holds the positions i with

    p <= i < p + M,

or all positions from p on where `max_lookahead` is None.

No deviation from the authors' code is known.
"""

from __future__ import annotations

import torch

from learn2pd.errors import check_at_least
from learn2pd.roles import Scheduler
from learn2pd.types import DecodeState, Window


class LookaheadScheduler(Scheduler):
    """APD's window.

    Args:
        max_lookahead: M, the tokens of the window, at least 1; None opens the rest of the canvas.

    Raises:
        ValueError: The number is below 1.
    """

    name = "lookahead"
    alignment = "sliding"
    slides = True

    def __init__(self, max_lookahead: int | None = None) -> None:
        self.max_lookahead = None if max_lookahead is None else check_at_least(1, "max_lookahead", max_lookahead)
        self.block_length = self.max_lookahead or 0

    def propose(self, state: DecodeState, memory: None) -> Window:
        start = state.leftmost_mask
        stop = state.end if self.max_lookahead is None else torch.minimum(start + self.max_lookahead, state.end)
        return Window(start, stop)
