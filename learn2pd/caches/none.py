"""No cache: every step recomputes every column. The results are exact."""

from __future__ import annotations

from torch import Tensor

from learn2pd.loop.plans import full_plan
from learn2pd.roles import Cache
from learn2pd.types import DecodeState, ForwardPlan


class NoCache(Cache):
    """One plan for all open rows. The plan leaves out the columns that no open row uses any more."""

    name = "none"
    keeps = False
    slides = True

    def plan(self, state: DecodeState, score: Tensor, memory: None) -> tuple[list[ForwardPlan], None]:
        return full_plan(state, state.open, score, keep=False), None
