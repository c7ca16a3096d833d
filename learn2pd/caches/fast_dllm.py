"""Fast-dLLM's caches (arXiv 2505.22618): the forward that opens a block recomputes everything, later ones only a part.

The rule: in the later forwards of a block at start <= i < stop, the cache recomputes the positions

    i >= start              with `prefix`: the block and everything behind it,
    start <= i < stop       with `dual`: the block alone.

With `dual`, the keys and values of the masks behind the block are therefore stale until the next block opens. The
forward that opens a block commits tokens too.

Deviations from the authors' code: none that changes a token. An early version of their code makes one forward without a
commit in a block that its opening forward has finished. Their later code leaves this forward out, and so does this one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.loop.plans import full_plan, partial_plan
from learn2pd.roles import Cache
from learn2pd.types import DecodeState, ForwardPlan, ModelSpec, RowMemory


@dataclass(frozen=True)
class OpenBlock(RowMemory):
    """The block that is open in each row.

    Attributes:
        start: [B] long, the start of the block, -1 before the first block.
    """

    start: Tensor


class BlockCache(Cache):
    """The part that `PrefixCache` and `DualCache` share: a full forward when a block opens.

    A subclass says which columns the later forwards of the block recompute.
    """

    def start(self, state: DecodeState, spec: ModelSpec) -> OpenBlock:
        return OpenBlock(torch.full_like(state.end, -1))

    def recomputed_stop(self, state: DecodeState) -> Tensor:
        """Return the position before which the later forwards of a block end.

        Args:
            state: The state before the forward.

        Returns:
            [B] long. These forwards recompute the positions from the start of the block up to here.
        """
        raise NotImplementedError

    def plan(self, state: DecodeState, score: Tensor, memory: OpenBlock) -> tuple[list[ForwardPlan], OpenBlock]:
        start = state.window.start
        score = score & state.window.mask(state.gen_length)
        opens = state.open & (start != memory.start)
        plans = full_plan(state, opens, score, keep=True)
        plans += partial_plan(
            state, state.open & ~opens, start, self.recomputed_stop(state), score, state.visible, state.spec.shift
        )
        return plans, OpenBlock(torch.where(opens, start, memory.start))


class PrefixCache(BlockCache):
    """The cache that keeps the columns before the block."""

    name = "prefix"

    def recomputed_stop(self, state: DecodeState) -> Tensor:
        return state.visible


class DualCache(BlockCache):
    """The cache that keeps the columns before the block and those behind it."""

    name = "dual"

    def recomputed_stop(self, state: DecodeState) -> Tensor:
        return state.window.stop
