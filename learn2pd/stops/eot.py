"""End after a committed end-of-text."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.tensors import after_first, is_among
from learn2pd.types import Commit, DecodeState, Prediction


class EotStop:
    """End after the first end-of-text that was committed with at least `floor` confidence; masks before it are still decoded.

    Nothing can be lost: whatever follows the first end-of-text of the canvas is never part of an answer. Later positions become
    end-of-text and stay in the sequence, as in the padded canvases a LLaDA is trained on.

    Args:
        floor: confidence, 0 to 1.
    """

    name, cuts, looks_ahead = "eot", False, False

    def __init__(self, floor: float = 0.5) -> None:
        if not 0 <= floor <= 1:
            raise ValueError(f"stop.floor={floor}: expected a confidence from 0 to 1")
        self.floor = floor

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        if commit.tokens is None:
            found = commit.mask & is_among(prediction.tokens, eot_ids) & (prediction.confidence >= self.floor)
        else:  # tokens that are not proposals have no confidence: who wrote them knew them
            found = commit.mask & is_among(commit.tokens, eot_ids)
        return torch.minimum(state.end, after_first(found))
