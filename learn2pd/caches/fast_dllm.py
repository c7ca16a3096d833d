"""Fast-dLLM's caches, prefix and dual (arXiv 2505.22618)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.loop.plans import full_plan, partial_plan
from learn2pd.types import DecodeState, ForwardPlan


@dataclass
class BlockMemory:
    lead: int  # columns before a window whose output is needed to propose its first token
    block: Tensor  # [B] long, start of the block everything was last recomputed for, -1 before
    stop: Tensor  # [B] long, end of that block
    reused: Tensor  # [B] bool, the kept values have served since then
    visible: Tensor  # [B] long, `state.visible` at that time


class BlockCache:
    """Fast-dLLM's caches (arXiv 2505.22618): everything is recomputed when a block opens, and that forward commits too.

    After it, `prefix` recomputes the block and all that follows it, `dual` the block alone, the values of the masks behind it going stale
    until the next block.

    Args:
        reference_quirks: whose quirks to reproduce. `fastdllm`: every block makes at least one forward that reuses, even if the opening
            one finished it; it commits nothing, and their later code does without. `learn2pd`: after a cut, `dual` still attends to what
            was cut. None: neither.
    """

    keeps, slides = True, False

    def __init__(self, name: str, reference_quirks: str | None = None) -> None:
        if reference_quirks not in (None, "fastdllm", "learn2pd"):
            raise ValueError(f"reference_quirks={reference_quirks!r}: expected fastdllm, learn2pd or null")
        self.name, self.reference_quirks = name, reference_quirks

    def start(self, state: DecodeState, shifted_logits: bool) -> BlockMemory:
        zeros = torch.zeros_like(state.end)
        return BlockMemory(int(shifted_logits), zeros - 1, zeros, zeros == 0, state.visible)

    def plan(self, state: DecodeState, score: Tensor, memory: BlockMemory) -> list[ForwardPlan]:
        start, stop = state.window.start, state.window.stop
        score = score & state.window.mask(state.gen_length)
        opens = state.open & (start != memory.block)
        reuses = state.open & ~opens
        plans = self._owed(state, opens, memory) + full_plan(state, opens, score, keep=True)
        memory.visible = torch.where(opens, state.visible, memory.visible)
        if self.name == "dual":
            seen = memory.visible if self.reference_quirks == "learn2pd" else state.visible
            plans += partial_plan(state, reuses, start, stop, score, seen, memory.lead)
        else:
            plans += partial_plan(state, reuses, start, state.visible, score, state.visible, memory.lead)
        memory.block, memory.reused = torch.where(opens, start, memory.block), torch.where(opens, False, memory.reused | reuses)
        memory.stop = torch.where(opens, stop, memory.stop)
        return plans

    def finish(self, state: DecodeState, memory: BlockMemory) -> list[ForwardPlan]:
        return self._owed(state, torch.ones_like(memory.reused), memory)

    def _owed(self, state: DecodeState, rows: Tensor, memory: BlockMemory) -> list[ForwardPlan]:
        if self.reference_quirks != "fastdllm":
            return []
        nothing = torch.zeros_like(state.masked)
        rows = rows & ~memory.reused
        memory.reused = memory.reused | rows
        return partial_plan(state, rows, memory.block, memory.stop, nothing, state.visible, memory.lead)
