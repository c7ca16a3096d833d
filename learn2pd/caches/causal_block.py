"""Exact reuse for models whose blocks see only what lies before them: a finished block's keys and values are final.

The forward that opens a block recomputes the block before it too, whose last tokens were masks in its own last forward. So the cache
costs no forward of its own, and tokens, steps and forwards are those without a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.loop.plans import partial_plan
from learn2pd.roles import Cache
from learn2pd.types import DecodeState, ForwardPlan, ModelSpec, RowMemory

if TYPE_CHECKING:
    from learn2pd.method import Method


@dataclass(frozen=True)
class FinalBefore(RowMemory):
    """From where on keys and values are not final yet."""

    extra: int  # columns before a window whose output is needed to propose its first token
    block_length: int
    start: Tensor  # [B] long, start of the last block; it may lie in the prompt and is negative then


class CausalBlockCache(Cache):
    """Exact reuse for block-causal models."""

    name = "causal_block"

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        if spec.causal_block is None:
            raise UserError(
                f"cache {self.name!r} is for block-causal models, in {spec.name} every token sees every other: use another cache"
            )

    def start(self, state: DecodeState, spec: ModelSpec) -> FinalBefore:
        assert spec.causal_block is not None
        return FinalBefore(int(spec.shifted_logits), spec.causal_block, state.pad - state.prompt_width)

    def plan(self, state: DecodeState, score: Tensor, memory: FinalBefore) -> tuple[list[ForwardPlan], FinalBefore]:
        length = state.prompt_width - state.pad
        block = (state.window.start + length) // memory.block_length * memory.block_length - length
        # not the window's end: what a stop rule closed stays in the sequence
        stop = torch.minimum(block + memory.block_length, state.visible)
        score = score & state.window.mask(state.gen_length)
        plans = partial_plan(state, state.open, memory.start, stop, score, stop, memory.extra)
        return plans, FinalBefore(memory.extra, memory.block_length, torch.where(state.open, block, memory.start))
