"""Sub-blocks of a block-causal model's blocks (Fast-dLLM v2, arXiv 2509.26328).

The rule: with the leftmost mask at position p, counted from the first token of the prompt, the window is the sub-block
with

    start <= p < start + sub_block_length.

The model sees the whole block all the while. Where the logits are shifted and p is the first position of a block, the
window is p alone: its token is the autoregressive one, predicted by the last token of the finished block before, and
the rest of the block is proposed with this token in place.

Deviations from the authors' code: a prompt of exactly one block is decoded as every other prompt. Their code forwards
no prompt that is not longer than a block, and then opens a window behind it, so that the model never sees it.
"""

from __future__ import annotations

import torch

from learn2pd.errors import check_at_least
from learn2pd.roles import Scheduler
from learn2pd.tensors import cell_start
from learn2pd.types import DecodeState, Window


class SubBlocksScheduler(Scheduler):
    """Sub-blocks on the grid of a block-causal model.

    Args:
        block_length: The tokens of a block, which must be the model's own.
        sub_block_length: The tokens of a sub-block, a divisor of `block_length`.

    Raises:
        ValueError: A length is below 1, or they do not divide.
    """

    name = "sub_blocks"
    alignment = "grid"

    def __init__(self, block_length: int = 32, sub_block_length: int = 8) -> None:
        self.block_length = check_at_least(1, "block_length", block_length)
        self.sub_block_length = check_at_least(1, "sub_block_length", sub_block_length)
        if block_length % sub_block_length:
            raise ValueError(f"sub_block_length={sub_block_length}: expected a divisor of block_length={block_length}")

    def propose(self, state: DecodeState, memory: None) -> Window:
        first = state.leftmost_mask
        start = cell_start(state, first, self.sub_block_length)
        stop = start + self.sub_block_length
        if state.spec.shifted_logits:
            stop = torch.where(first == cell_start(state, first, self.block_length), start + 1, stop)
        return Window(start.clamp_min(0), torch.minimum(stop, state.end))
