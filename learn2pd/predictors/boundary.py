"""The boundary predictor as a scheduler: AdaBlock with a trained network in place of the delimiter rule.

The rule: the forward that opens a block decides its length. The block ends at the first masked position with

    probability > threshold,

where the probability is the network's answer to the question whether a step of the answer ends here. A block without
such a position has `block_length` tokens. The rule is this project's own; AdaBlock is arXiv 2509.26432.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.errors import check_at_least
from learn2pd.predictors.apply import NetworkMemory, check_contract, needs_of, on_device, probability
from learn2pd.predictors.loading import load_predictor
from learn2pd.predictors.networks import Conv, PredictorNetwork
from learn2pd.predictors.questions import Columns, positions
from learn2pd.predictors.saving import Predictor, saved_folder
from learn2pd.schedulers.adablock import SEARCH_SHARE, SemanticBlocks
from learn2pd.types import DecodeState, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method

CHANNELS = ("log_odds", "masked", "valid", "position", "end_of_text", "delimiter")


@dataclass(frozen=True)
class StepEnd:
    """The question of the scheduler `adablock_learned`: does a step of the answer end at this position?

    A step of an answer is, for example, a line.

    Args:
        delimiter_ids: The tokens that end a step.
        reach: The number of tokens, from the first mask on, that the network sees.
    """

    delimiter_ids: tuple[int, ...]
    reach: int
    kind: ClassVar[str] = "boundary"
    of_committed: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("reference", "length")

    def window(self, columns: Columns) -> Window:
        start = columns["masked"].int().argmax(1)
        return Window(start, (start + self.reach).clamp_max(columns["masked"].shape[1]))

    def label(self, columns: Columns) -> Tensor:
        ends = torch.isin(columns["reference"], torch.tensor(self.delimiter_ids))
        return ends & (positions(columns) < columns["length"][:, None])

    def counted(self, columns: Columns) -> Tensor:
        return columns["masked"]

    def judged(self, columns: Columns) -> Tensor:
        return columns["masked"]

    @classmethod
    def of(cls, description: Mapping[str, Any], loss_on: str) -> StepEnd:
        reach = max(1, int(description["gen_length"] * SEARCH_SHARE))  # as far as AdaBlock looks
        return cls(tuple(description["delimiter_ids"]), reach)

    @staticmethod
    def network() -> PredictorNetwork:
        """Make an untrained network for this question."""
        return Conv(CHANNELS, hidden=16)


class LearnedAdaBlockScheduler(SemanticBlocks):
    """AdaBlock with a trained network.

    Args:
        predictor: A predictor of the kind `boundary`.
        block_length: The tokens of a block in which the network sees no end.
    """

    name = "adablock_learned"
    learned = True
    built_by = "learn2pd.predictors.boundary:load_boundary"

    def __init__(self, predictor: Predictor, block_length: int = 32) -> None:
        self.predictor = predictor
        self.block_length = check_at_least(1, "block_length", block_length)
        self.needs = needs_of(predictor)

    def describe(self) -> dict[str, Any]:
        return saved_folder(self.predictor) | {"block_length": self.block_length}

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        check_contract(self.predictor, spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> NetworkMemory:
        return on_device(self.predictor, state)

    def block_end(
        self, state: DecodeState, searched: Window, prediction: Prediction, memory: NetworkMemory
    ) -> tuple[Tensor, Tensor]:
        width = max(1, self.searched_tokens(state))
        ending = probability(memory.network, self.predictor.contract, state, prediction, searched, width)
        ends = (ending > self.predictor.threshold) & prediction.valid & state.masked
        return ends.int().argmax(1) + 1, ends.any(1)


@checked(but=("folder",))
def load_boundary(folder: str | Path, block_length: int = 32, revision: str | None = None) -> LearnedAdaBlockScheduler:
    """Build the scheduler with the boundary predictor that lies beside a saved policy.

    Args:
        folder: The folder of the policy, with a folder `boundary` in it, or the name of its repository of the hub.
        block_length: As for `LearnedAdaBlockScheduler`.
        revision: The revision of the hub repository.

    Returns:
        The scheduler.

    Raises:
        UserError: The predictor is missing or damaged.
    """
    return LearnedAdaBlockScheduler(load_predictor(folder, "boundary", "boundary", revision), block_length)
