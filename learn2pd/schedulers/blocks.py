"""Semi-autoregressive blocks (LLaDA, arXiv 2502.09992): the first block with a mask left.

Blocks are counted from the end of the prompt, as LLaDA does, or on an absolute grid from the first token of the prompt, as block-causal
models do (SDAR, LLaDA2); on the grid the first block may begin inside the prompt. A canvas that is no multiple of the block has a shorter
last block; a block at least as long as the canvas is no blocks at all.
"""

from __future__ import annotations

import torch

from learn2pd.errors import check_at_least
from learn2pd.roles import Scheduler
from learn2pd.types import DecodeState, Window


class BlocksScheduler(Scheduler):
    """Semi-autoregressive blocks.

    Args:
        block_length: tokens, at least 1.
        alignment: `prompt` counts blocks from the end of the prompt, `grid` from its first token.

    Raises:
        ValueError: for another alignment or a length below 1.
    """

    name = "blocks"

    def __init__(self, block_length: int = 32, alignment: str = "prompt") -> None:
        if alignment not in ("prompt", "grid"):
            raise ValueError(f"alignment={alignment!r}: expected prompt or grid")
        self.block_length = check_at_least(1, "block_length", block_length)
        self.alignment = alignment

    def propose(self, state: DecodeState, memory: None) -> Window:
        offset = (state.prompt_width - state.pad) % self.block_length * (self.alignment == "grid")
        start = (state.leftmost_mask + offset) // self.block_length * self.block_length - offset
        return Window(start.clamp_min(0), torch.minimum(start + self.block_length, state.end))
