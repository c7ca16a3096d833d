"""The boundary predictor as a scheduler (ours): AdaBlock with a trained network in place of the delimiter rule.

A block ends at the first position where the network says that a step of the answer ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from learn2pd.errors import check_at_least
from learn2pd.predictors.apply import NetworkMemory, check_contract, needs_of, on_device, probability
from learn2pd.predictors.saving import Predictor, load_predictor, saved_folder
from learn2pd.schedulers.adablock import SemanticBlocks
from learn2pd.types import DecodeState, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method


class LearnedAdaBlockScheduler(SemanticBlocks):
    """AdaBlock with a trained network.

    Args:
        predictor: of kind boundary.
        block_length: tokens of a block in which the network sees no end.
    """

    name = "adablock_learned"
    learned = True
    built_by = "learn2pd.predictors.boundary:load_boundary"

    def __init__(self, predictor: Predictor, block_length: int = 32) -> None:
        self.predictor = predictor
        self.block_length = check_at_least(1, "block_length", block_length)
        self.needs = needs_of(predictor)

    def describe(self) -> dict[str, Any]:
        return {"folder": str(Path(saved_folder(self.predictor)).parent), "block_length": self.block_length}

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        check_contract(self.predictor, spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> NetworkMemory:
        return on_device(self.predictor, state)

    def block_end(self, state: DecodeState, searched: Window, prediction: Prediction, memory: NetworkMemory) -> tuple[Tensor, Tensor]:
        width = max(1, self.searched_tokens(state))
        ending = probability(memory.network, self.predictor.contract, state, prediction, searched, width)
        ends = (ending > self.predictor.threshold) & prediction.valid & state.masked
        return ends.int().argmax(1) + 1, ends.any(1)


def load_boundary(folder: str | Path, block_length: int = 32) -> LearnedAdaBlockScheduler:
    """The scheduler with the boundary predictor beside the policy in `folder`.

    Raises:
        UserError: it is missing or damaged.
    """
    return LearnedAdaBlockScheduler(load_predictor(Path(folder) / "boundary", "boundary"), block_length)
