"""End after a committed end-of-text. The rule is this project's own; it comes from no paper.

The rule: a row ends behind the first end-of-text that was committed in this step with

    confidence >= floor

and that has no given token behind it. No part of an answer is lost, because an answer never holds tokens behind such an
end-of-text. (A policy that revises may still take the end-of-text back or overwrite it. The answer then goes on where
it stood, and what was closed behind it stays closed.) Masks before it are still decoded. The positions behind it become
end-of-text and stay in the sequence, as in the padded canvases on which LLaDA was trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learn2pd.errors import check_probability
from learn2pd.roles import StopRule
from learn2pd.tensors import after_first, may_end
from learn2pd.types import Commit, DecodeState, Prediction


class EotStop(StopRule):
    """End after the first end-of-text that was committed with at least `floor` confidence.

    Args:
        floor: The least confidence of the end-of-text, 0 to 1.

    Raises:
        ValueError: The floor is not a number from 0 to 1.
    """

    name = "eot"

    def __init__(self, floor: float = 0.5) -> None:
        self.floor = check_probability("floor", floor)

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: Any) -> Tensor:
        ended = commit.mask & may_end(state, commit.tokens_or(prediction.tokens))
        if commit.tokens is None:  # tokens of the policy's own have no confidence; they count as certain
            ended = ended & (prediction.confidence >= self.floor)
        return torch.minimum(state.end, after_first(ended))
