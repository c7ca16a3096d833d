"""End after a committed end-of-text. The rule is this project's own; it comes from no paper.

The rule: a row ends behind the first end-of-text that was committed in this step with

    confidence >= floor

and that has no given token behind it. No part of an answer is lost, because an answer never holds tokens behind such an
end-of-text. (A policy that revises may still take the end-of-text back or overwrite it. The answer then goes on where
it stood, and what was closed behind it stays closed.) Masks before it are still decoded. The positions behind it become
end-of-text and stay in the sequence, as in the padded canvases on which LLaDA was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learn2pd.errors import check_probability
from learn2pd.roles import StopRule
from learn2pd.tensors import after_first, is_among
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory


@dataclass(frozen=True)
class EotIds(RowMemory):
    """The memory of rules that look for an end-of-text.

    Attributes:
        eot_ids: The ids that end an answer.
    """

    eot_ids: tuple[int, ...]


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

    def start(self, state: DecodeState, spec: ModelSpec) -> Any:
        return EotIds(spec.eot_ids)

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: Any) -> Tensor:
        if commit.tokens is None:
            ended = commit.mask & is_among(prediction.tokens, memory.eot_ids) & (prediction.confidence >= self.floor)
        else:  # the policy wrote tokens of its own, which have no confidence; they count as certain
            ended = commit.mask & is_among(commit.tokens, memory.eot_ids)
        return torch.minimum(state.end, after_first(ended & state.behind_given))
