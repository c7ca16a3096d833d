"""Exact reuse for block-causal models such as SDAR, in which a block sees only itself and the blocks before it.

The keys and values of a block whose tokens are all committed never change again, so that the cache keeps them. The
forward that opens a block also recomputes the block before it, since the last committed tokens of that block were still
masks in its own last forward. The cache therefore needs no extra forward: tokens, steps and forwards are the same as
without a cache.

The rule follows from the models' attention mask; it comes from no paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learn2pd.caches.none import NoCache
from learn2pd.errors import UserError
from learn2pd.loop.plans import partial_plan
from learn2pd.roles import Cache
from learn2pd.tensors import cell_start
from learn2pd.types import DecodeState, ForwardPlan, ModelSpec, RowMemory

if TYPE_CHECKING:
    from learn2pd.method import Method


@dataclass(frozen=True)
class FinalBefore(RowMemory):
    """The place from which on keys and values are not final yet.

    Attributes:
        start: [B] long, the generation position at which the last block starts. It is negative inside the prompt.
    """

    start: Tensor


class CausalBlockCache(Cache):
    """Exact reuse for block-causal models."""

    name = "causal_block"
    grows = True

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        if spec.causal_block is None:
            raise UserError(
                f"cache {self.name!r} is for block-causal models, in {spec.name} every token sees every other: "
                "use another cache"
            )

    def start(self, state: DecodeState, spec: ModelSpec) -> FinalBefore:
        return FinalBefore(state.pad - state.prompt_width)

    def plan(self, state: DecodeState, score: Tensor, memory: FinalBefore) -> tuple[list[ForwardPlan], FinalBefore]:
        return whole_blocks(state, state.open, score, memory)


def exact_cache_for(spec: ModelSpec) -> Cache:
    """Return the fastest cache that changes no answer of a model.

    Args:
        spec: The facts about the model.
    """
    return NoCache() if spec.causal_block is None else CausalBlockCache()


def block_length_of(state: DecodeState) -> int:
    """Return the tokens of a block of the run's model, which `CausalBlockCache.check` has found to be block-causal."""
    assert state.spec.causal_block is not None
    return state.spec.causal_block


def whole_blocks(
    state: DecodeState, rows: Tensor, score: Tensor, memory: FinalBefore
) -> tuple[list[ForwardPlan], FinalBefore]:
    """Plan a forward over the block of each row's window, and over the blocks before it that are not final yet.

    Args:
        state: The state before the forward.
        rows: [B] bool, the rows that take part.
        score: [B, G] bool, the positions at which proposals are wanted.
        memory: The place from which on keys and values are not final yet.

    Returns:
        The plans, and the place after the forward.
    """
    block_length = block_length_of(state)
    block = cell_start(state, state.window.start, block_length)
    # the window ends at closed positions, and the block goes on: closed positions stay in the sequence
    stop = torch.minimum(block + block_length, state.visible)
    score = score & state.window.mask(state.gen_length)
    plans = partial_plan(state, rows, memory.start, stop, score, stop, state.spec.shift)
    return plans, FinalBefore(torch.where(rows, block, memory.start))
