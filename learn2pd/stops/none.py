"""No stop rule: every position of the canvas is decoded. A row ends when no mask is left."""

from __future__ import annotations

from torch import Tensor

from learn2pd.roles import StopRule
from learn2pd.types import Commit, DecodeState, Prediction


class NoStop(StopRule):
    """No row ends early."""

    name = "none"

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: None) -> Tensor:
        return state.end
