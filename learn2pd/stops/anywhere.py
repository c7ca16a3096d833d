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
from learn2pd.tensors import may_end
from learn2pd.types import Commit, DecodeState, Prediction


class AnywhereStop(StopRule):
    """APD's stop rule."""

    name = "anywhere"
    cuts = True

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: None) -> Tensor:
        after = state.written(commit, prediction.tokens)
        left = after.masked & ((commit.mask & may_end(state, after.canvas)).cumsum(1) > 0)
        return torch.where(left.any(1), left.int().argmax(1), state.end)
