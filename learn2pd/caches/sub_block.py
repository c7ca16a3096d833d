"""Fast-dLLM v2's cache inside a block (arXiv 2509.26328): only the sub-block that is being decoded is recomputed.

The rule: a forward recomputes the whole block where the first position of the sub-block is a mask, or where no forward
of the block went before. Every other forward recomputes the sub-block alone, and attends to the kept keys and values of
the rest of the block. Those become stale as the sub-block fills, until the next sub-block opens. Blocks before are
final and reused, as in `causal_block.py`.

Deviations from the authors' code: the forward that opens a block also stores the block before it, so that no forward
only stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learn2pd.caches.causal_block import CausalBlockCache, FinalBefore, block_length_of, whole_blocks
from learn2pd.errors import UserError, check_at_least
from learn2pd.loop.plans import partial_plan
from learn2pd.schedulers.sub_blocks import SubBlocksScheduler
from learn2pd.tensors import cell_start
from learn2pd.types import DecodeState, ForwardPlan, ModelSpec, RowMemory

if TYPE_CHECKING:
    from learn2pd.method import Method


@dataclass(frozen=True)
class KeptBlock(RowMemory):
    """The blocks whose keys and values are kept.

    Attributes:
        final: The place from which on keys and values are not final yet.
        start: [B] long, the generation position at which the block starts whose keys and values are kept, though they
            are not final. It is less than every block's before the first one.
    """

    final: FinalBefore
    start: Tensor


class SubBlockCache(CausalBlockCache):
    """Reuse inside the blocks of a block-causal model.

    Args:
        sub_block_length: The tokens of a sub-block, as the scheduler has it.

    Raises:
        ValueError: The length is below 1.
    """

    name = "sub_block"

    def __init__(self, sub_block_length: int = 8) -> None:
        self.sub_block_length = check_at_least(1, "sub_block_length", sub_block_length)

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        scheduler = method.scheduler
        if not isinstance(scheduler, SubBlocksScheduler) or scheduler.sub_block_length != self.sub_block_length:
            raise UserError(
                f"cache {self.name!r} keeps sub-blocks of {self.sub_block_length} tokens, scheduler is {scheduler}: "
                f"use SubBlocksScheduler({spec.causal_block}, {self.sub_block_length})"
            )

    def start(self, state: DecodeState, spec: ModelSpec) -> KeptBlock:  # type: ignore[override]
        final = super().start(state, spec)
        return KeptBlock(final, final.start - block_length_of(state))

    def plan(  # type: ignore[override]
        self, state: DecodeState, score: Tensor, memory: KeptBlock
    ) -> tuple[list[ForwardPlan], KeptBlock]:
        block_length = block_length_of(state)
        lengths = (block_length, self.sub_block_length)
        block, first = (cell_start(state, state.window.start, length) for length in lengths)
        # the first position of a block is a mask only in the forward that stores the block before
        opens = (block >= 0) & _masked_at(state, block)
        whole = state.open & ((memory.start != block) | ((first >= 0) & _masked_at(state, first)))
        plans, after = whole_blocks(state, whole, score, memory.final)
        alone = state.open & ~whole
        stop = torch.minimum(first + self.sub_block_length, state.visible)
        seen = torch.minimum(block + block_length, state.visible)
        plans += partial_plan(state, alone, first, stop, score & state.window.mask(state.gen_length), seen, 0)
        kept = torch.where(opens, block - block_length, block)
        return plans, KeptBlock(after, torch.where(state.open, kept, memory.start))


def _masked_at(state: DecodeState, position: Tensor) -> Tensor:
    """Return whether a generation position of each row is a mask, [B] bool. Positions of the prompt count as 0."""
    return state.masked.gather(1, position.clamp_min(0)[:, None])[:, 0]
