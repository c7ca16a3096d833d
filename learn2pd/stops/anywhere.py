"""APD's stop rule (arXiv 2506.00413): an end-of-text anywhere in the canvas cuts the sequence.

The rule: after a step that committed an end-of-text at position e, the sequence ends before the first position i with

    i > e and i is still masked.

A policy that commits from left to right leaves no mask before e, so that the row is finished. Other policies still
decode the masks before e. An end-of-text before a token that the caller gave does not count.

No deviation from the authors' code is known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.roles import StopRule
from learn2pd.stops.eot import EotIds
from learn2pd.tensors import is_among
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction


class AnywhereStop(StopRule):
    """APD's stop rule."""

    name = "anywhere"
    cuts = True

    def start(self, state: DecodeState, spec: ModelSpec) -> EotIds:
        return EotIds(spec.eot_ids)

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: EotIds) -> Tensor:
        written = prediction.tokens if commit.tokens is None else commit.tokens
        ended = (commit.mask & is_among(written, memory.eot_ids) & state.behind_given).cumsum(1) > 0
        masked = state.masked if commit.revoke is None else state.masked | commit.revoke
        left = masked & ~commit.mask & ended
        return torch.where(left.any(1), left.int().argmax(1), state.end)
