"""Fast-dLLM's caches (arXiv 2505.22618): everything is recomputed when a block opens, and that forward commits too.

After it, `prefix` recomputes the block and all that follows it. `dual` recomputes the block alone, so that the values of the masks behind the
block go stale until the next block opens.

Deviations from the authors' code: none that changes a token. (An early version of theirs makes one forward without a commit in a block that
its opening forward has finished; their later code does without, and so does this one.)
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
    """Which block everything was last recomputed for."""

    extra: int  # columns before a window whose output is needed to propose its first token
    start: Tensor  # [B] long, -1 before the first


class BlockCache(Cache):
    """What `PrefixCache` and `DualCache` share: when a block opens. A subclass says which columns are recomputed after that."""

    def start(self, state: DecodeState, spec: ModelSpec) -> OpenBlock:
        return OpenBlock(int(spec.shifted_logits), torch.full_like(state.end, -1))

    def recomputed_stop(self, state: DecodeState) -> Tensor:
        """[B] long: positions of a block's later forwards, counted from its start, end here."""
        raise NotImplementedError

    def plan(self, state: DecodeState, score: Tensor, memory: OpenBlock) -> tuple[list[ForwardPlan], OpenBlock]:
        start = state.window.start
        score = score & state.window.mask(state.gen_length)
        opens = state.open & (start != memory.start)
        plans = full_plan(state, opens, score, keep=True)
        plans += partial_plan(
            state, state.open & ~opens, start, self.recomputed_stop(state), score, state.visible, memory.extra
        )
        return plans, OpenBlock(memory.extra, torch.where(opens, start, memory.start))


class PrefixCache(BlockCache):
    """Keep what lies before the block."""

    name = "prefix"

    def recomputed_stop(self, state: DecodeState) -> Tensor:
        return state.visible


class DualCache(BlockCache):
    """Keep what lies before the block and behind it."""

    name = "dual"

    def recomputed_stop(self, state: DecodeState) -> Tensor:
        return state.window.stop
