"""Semi-autoregressive blocks (LLaDA, arXiv 2502.09992)."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.types import DecodeState, ModelSpec, Prediction, Window


def leftmost_mask(state: DecodeState) -> Tensor:
    """[B] long, 0 for finished rows, which no plan contains."""
    return state.masked.int().argmax(1)


class BlocksScheduler:
    """Semi-autoregressive blocks (LLaDA, arXiv 2502.09992): the first block, counted from the end of the prompt, with a mask left.

    A canvas that is no multiple of the block has a shorter last block; a block at least as long as the canvas is no blocks at all.

    Args:
        block_length: tokens, at least 1.
    """

    name, alignment, slides = "blocks", "prompt", False

    def __init__(self, block_length: int = 32) -> None:
        self.block_length = at_least(1, "block_length", block_length)

    def check_model(self, spec: ModelSpec) -> None:
        return None

    def propose(self, state: DecodeState) -> Window:
        start = leftmost_mask(state) // self.block_length * self.block_length
        return Window(start, torch.minimum(start + self.block_length, state.end))

    def resolve(self, state: DecodeState, window: Window, prediction: Prediction) -> Window:
        return window


def at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise ValueError(f"{name}={value}: expected at least {least}")
    return value
