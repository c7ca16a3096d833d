"""APD's rule (arXiv 2506.00413): once an end-of-text is anywhere in the canvas, the sequence is cut before the first mask behind it.

For policies that commit from left to right nothing is masked before it, so the row is done; with others the masks before it are decoded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.roles import StopRule
from learn2pd.stops.eot import EotIds
from learn2pd.tensors import is_among
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction


class AnywhereStop(StopRule):
    """APD's rule."""

    name = "anywhere"
    cuts = True

    def start(self, state: DecodeState, spec: ModelSpec) -> EotIds:
        return EotIds(spec.eot_ids)

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: EotIds) -> Tensor:
        written = prediction.tokens if commit.tokens is None else commit.tokens
        ended = (commit.mask & is_among(written, memory.eot_ids)).cumsum(1) > 0
        left = state.masked & ~commit.mask & ended
        return torch.where(left.any(1), left.int().argmax(1), state.end)
