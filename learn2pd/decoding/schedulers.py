"""Where a policy may commit next: a scheduler opens a window per row.

`propose` runs before the forward, `resolve` after it, for methods whose window depends on the proposals.
"""

from __future__ import annotations

from typing import Protocol

import torch

from learn2pd.types import DecodeState, Prediction, Window


class Scheduler(Protocol):
    name: str
    alignment: str  # "prompt": windows start at the end of the prompt
    block_length: int

    def propose(self, state: DecodeState) -> Window: ...

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window: ...


class BlocksScheduler:
    """Semi-autoregressive blocks (LLaDA, arXiv 2502.09992): the first block, counted from the end of the prompt, with a mask left.

    A canvas that is no multiple of the block has a shorter last block.

    Args:
        block_length: tokens, at least 1.
    """

    name = "blocks"
    alignment = "prompt"

    def __init__(self, block_length: int = 32) -> None:
        if block_length < 1:
            raise ValueError(f"block_length={block_length}: expected at least 1")
        self.block_length = block_length

    def propose(self, state: DecodeState) -> Window:
        first = state.masked.int().argmax(1)  # [B] leftmost mask; 0 for finished rows, which no plan contains
        start = first // self.block_length * self.block_length
        stop = torch.minimum(start + self.block_length, state.end)
        return Window(start, stop)

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window:
        return window
