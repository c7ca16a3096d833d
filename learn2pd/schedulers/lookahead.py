"""APD's window (arXiv 2506.00413)."""

from __future__ import annotations

import torch

from learn2pd.schedulers.blocks import at_least, leftmost_mask
from learn2pd.types import DecodeState, ModelSpec, Prediction, Window


class LookaheadScheduler:
    """APD's window (arXiv 2506.00413): the leftmost mask and what follows it.

    Args:
        max_lookahead: M, tokens; None is the rest of the canvas.
    """

    name, alignment, slides = "lookahead", "sliding", True

    def __init__(self, max_lookahead: int | None = None) -> None:
        self.max_lookahead = None if max_lookahead is None else at_least(1, "max_lookahead", max_lookahead)
        self.block_length = self.max_lookahead or 0

    def check_model(self, spec: ModelSpec) -> None:
        return None

    def propose(self, state: DecodeState) -> Window:
        start = leftmost_mask(state)
        return Window(start, state.end if self.max_lookahead is None else torch.minimum(start + self.max_lookahead, state.end))

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window:
        return window
