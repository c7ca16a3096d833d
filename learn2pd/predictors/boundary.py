"""The scheduler that asks a trained network where a step of the answer ends."""

from __future__ import annotations

from torch import Tensor

from learn2pd.predictors.apply import probability
from learn2pd.predictors.saving import Predictor
from learn2pd.schedulers.adablock import AdaBlockScheduler
from learn2pd.types import DecodeState, Prediction, Window


class LearnedAdaBlockScheduler(AdaBlockScheduler):
    """AdaBlock with a trained predictor in place of the delimiter rule: a block ends at the first position where a step of the answer ends.

    Args:
        predictor: of kind boundary.
        block_length: tokens of a block in which the predictor finds no end.
    """

    name = "adablock_learned"

    def __init__(self, predictor: Predictor, block_length: int = 32) -> None:
        super().__init__(predictor.contract.delimiter_ids, block_length, predictor.threshold)
        self.predictor, self.contract = predictor, predictor.contract

    def _block_end(self, state: DecodeState, searched: Window, prediction: Prediction) -> tuple[Tensor, Tensor]:
        found = probability(self.predictor, state, prediction, searched, max(1, self._search(state))) > self.delimiter_threshold
        found = found & prediction.valid & state.masked
        return found.int().argmax(1) + 1, found.any(1)
