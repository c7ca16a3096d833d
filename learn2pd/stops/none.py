"""Decode the whole canvas."""

from __future__ import annotations

from torch import Tensor

from learn2pd.types import Commit, DecodeState, Prediction


class NoStop:
    """Decode the whole canvas."""

    name, cuts, looks_ahead = "none", False, False

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        return state.end
