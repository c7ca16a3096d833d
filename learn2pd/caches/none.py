"""Recompute everything at every step."""

from __future__ import annotations

from torch import Tensor

from learn2pd.loop.plans import full_plan
from learn2pd.types import DecodeState, ForwardPlan


class NoCache:
    """Recompute everything, in one plan for all open rows, trimmed to the columns that any of them still uses."""

    name, keeps, slides = "none", False, True

    def start(self, state: DecodeState, shifted_logits: bool) -> None:
        return None

    def plan(self, state: DecodeState, score: Tensor, memory: None) -> list[ForwardPlan]:
        return full_plan(state, state.open, score, keep=False)

    def finish(self, state: DecodeState, memory: None) -> list[ForwardPlan]:
        return []
