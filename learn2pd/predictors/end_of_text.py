"""The stop rule that asks a trained network where the answer ends."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.predictors.apply import probability
from learn2pd.predictors.saving import Predictor
from learn2pd.stops.eot import EotStop
from learn2pd.tensors import is_among
from learn2pd.types import Commit, DecodeState, Prediction, Window


class LearnedStop(EotStop):
    """End where a trained predictor says that the answer has ended, as soon as it does; and, as `eot`, after an end-of-text that was committed.

    The row ends at the first masked position that the predictor puts behind the answer's end with more than its threshold, and that has no
    committed token of an answer behind it. The threshold is calibrated to cut no answer short on held-out prompts.

    Args:
        predictor: of kind end_of_text.
        floor: as for `eot`.
    """

    name, cuts, looks_ahead = "learned", False, True

    def __init__(self, predictor: Predictor, floor: float = 0.5) -> None:
        super().__init__(floor)
        self.predictor, self.contract = predictor, predictor.contract

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        position = torch.arange(state.gen_length, device=state.end.device)
        zeros = torch.zeros_like(state.end)
        sure = probability(self.predictor, state, prediction, Window(zeros, zeros + state.gen_length), state.gen_length) > self.predictor.threshold
        tokens = torch.where(commit.mask, prediction.tokens if commit.tokens is None else commit.tokens, state.canvas)
        answer = (~state.masked | commit.mask) & ~is_among(tokens, eot_ids)
        last = torch.where(answer, position, -1).amax(1, keepdim=True)  # [B, 1] nothing that was written is taken back
        found = sure & state.masked & prediction.valid & (position > last)
        first = torch.where(found.any(1), found.int().argmax(1), state.end)
        return torch.minimum(first, super().ends(state, prediction, commit, eot_ids))
