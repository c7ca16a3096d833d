"""Semi-autoregressive blocks (LLaDA, arXiv 2502.09992): the window is the first block that still has a mask.

The rule: with the leftmost mask at position p, the window is the block with

    start <= p < start + block_length.

With `alignment="prompt"` the blocks are counted from the end of the prompt, as in LLaDA. With `alignment="grid"` they
are counted from the first token of the prompt, as in the block-causal models SDAR and LLaDA2; the first block may then
begin inside the prompt. The last block is shorter where the canvas does not end with a block. A `block_length` of at
least the canvas makes the whole canvas one block.

Deviation from the authors' code: LLaDA's code refuses a canvas that is not a multiple of the block.
"""

from __future__ import annotations

import torch

from learn2pd.errors import check_at_least
from learn2pd.roles import Scheduler
from learn2pd.tensors import cell_start
from learn2pd.types import DecodeState, ModelSpec, Window


class BlocksScheduler(Scheduler):
    """Semi-autoregressive blocks.

    Args:
        block_length: The tokens of a block, at least 1.
        alignment: `prompt` counts the blocks from the end of the prompt, `grid` from its first token.

    Raises:
        ValueError: The alignment is unknown, or the length is below 1.
    """

    name = "blocks"

    def __init__(self, block_length: int = 32, alignment: str = "prompt") -> None:
        if alignment not in ("prompt", "grid"):
            raise ValueError(f"alignment={alignment!r}: expected prompt or grid")
        self.block_length = check_at_least(1, "block_length", block_length)
        self.alignment = alignment

    def propose(self, state: DecodeState, memory: None) -> Window:
        first = state.leftmost_mask
        if self.alignment == "grid":
            start = cell_start(state, first, self.block_length)
        else:
            start = first - first % self.block_length
        return Window(start.clamp_min(0), torch.minimum(start + self.block_length, state.end))


def alignment_of(spec: ModelSpec) -> str:
    """Return the alignment of the blocks on which a model is decoded.

    Args:
        spec: The facts about the model.
    """
    return "prompt" if spec.causal_block is None else "grid"


def blocks_for(spec: ModelSpec, block_length: int) -> BlocksScheduler:
    """Return the blocks on which a model is decoded.

    Args:
        spec: The facts about the model.
        block_length: The tokens of a block, at least 1.
    """
    return BlocksScheduler(block_length, alignment_of(spec))
