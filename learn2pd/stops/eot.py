"""End after a committed end-of-text (ours).

Nothing can be lost: whatever follows the first end-of-text of the canvas is never part of an answer. Masks before it are still decoded. Later
positions become end-of-text and stay in the sequence, as in the padded canvases a LLaDA is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learn2pd.roles import StopRule
from learn2pd.tensors import after_first, is_among
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory


@dataclass(frozen=True)
class EotIds(RowMemory):
    """The ids that end an answer."""

    eot_ids: tuple[int, ...]


class EotStop(StopRule):
    """End after the first end-of-text that was committed with at least `floor` confidence.

    Args:
        floor: confidence, 0 to 1.

    Raises:
        ValueError: for a number that is no confidence.
    """

    name = "eot"

    def __init__(self, floor: float = 0.5) -> None:
        if not 0 <= floor <= 1:
            raise ValueError(f"floor={floor}: expected a confidence from 0 to 1")
        self.floor = floor

    def start(self, state: DecodeState, spec: ModelSpec) -> Any:
        return EotIds(spec.eot_ids)

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: Any) -> Tensor:
        if commit.tokens is None:
            ended = commit.mask & is_among(prediction.tokens, memory.eot_ids) & (prediction.confidence >= self.floor)
        else:  # tokens that are not proposals have no confidence: who wrote them knew them
            ended = commit.mask & is_among(commit.tokens, memory.eot_ids)
        return torch.minimum(state.end, after_first(ended))
