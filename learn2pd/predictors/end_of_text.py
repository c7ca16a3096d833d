"""The end-of-text predictor as a stop rule: a trained network says where the answer has ended.

The rule: a row ends at the first masked position that has no committed or given token behind it and for which

    probability > threshold,

where the probability is the network's answer to the question whether the answer has ended before this position. As with
the rule `eot`, a row also ends behind an end-of-text that was committed. The calibration sets the threshold so that the
rule cuts no answer of the held-out prompts short. The rule is this project's own; it comes from no paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from learn2pd.arguments import checked
from learn2pd.predictors.apply import NetworkMemory, check_contract, needs_of, on_device, probability
from learn2pd.predictors.loading import load_predictor
from learn2pd.predictors.networks import Conv, PredictorNetwork
from learn2pd.predictors.questions import Columns, positions
from learn2pd.predictors.saving import Predictor, saved_folder
from learn2pd.stops.eot import EotStop
from learn2pd.tensors import is_among
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method

# a stop rule sees these channels without asking the model for extras, at any length of the canvas
CHANNELS = ("log_odds", "masked", "end_of_text")


@dataclass(frozen=True)
class Ended:
    """The question of the stop rule `learned`, over the whole canvas: has the answer ended before this position?"""

    kind: ClassVar[str] = "end_of_text"
    of_committed: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("length",)

    def window(self, columns: Columns) -> Window:
        zeros = torch.zeros(len(columns["masked"]), dtype=torch.long)
        return Window(zeros, zeros + columns["masked"].shape[1])

    def label(self, columns: Columns) -> Tensor:
        return positions(columns) >= columns["length"][:, None]

    def counted(self, columns: Columns) -> Tensor:
        return columns["masked"]

    def judged(self, columns: Columns) -> Tensor:
        return columns["masked"]

    @classmethod
    def of(cls, description: Mapping[str, Any], loss_on: str) -> Ended:
        return cls()

    @staticmethod
    def network() -> PredictorNetwork:
        """Make an untrained network for this question."""
        return Conv(CHANNELS, hidden=16)


class LearnedStop(EotStop):
    """End where a trained network says that the answer has ended.

    Args:
        predictor: A predictor of the kind `end_of_text`.
        floor: The least confidence of a committed end-of-text that ends a row, as for `EotStop`.
    """

    name = "learned"
    looks_ahead = True
    learned = True
    built_by = "learn2pd.predictors.end_of_text:load_end_of_text"

    def __init__(self, predictor: Predictor, floor: float = 0.5) -> None:
        super().__init__(floor)
        self.predictor = predictor
        self.needs = needs_of(predictor)

    def describe(self) -> dict[str, Any]:
        return saved_folder(self.predictor) | {"floor": self.floor}

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        check_contract(self.predictor, spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> NetworkMemory:
        return on_device(self.predictor, state)

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: NetworkMemory) -> Tensor:
        position = torch.arange(state.gen_length, device=state.end.device)
        zeros = torch.zeros_like(state.end)
        canvas = Window(zeros, zeros + state.gen_length)
        ended = probability(memory.network, self.predictor.contract, state, prediction, canvas, state.gen_length)
        after = state.written(commit, prediction.tokens)
        answer = ~after.masked & ~is_among(after.canvas, state.spec.eot_ids)
        # [B, 1] long, the last token of the answer so far; no position up to here is closed
        last = torch.where(answer, position, -1).amax(1, keepdim=True)
        sure = (ended > self.predictor.threshold) & state.masked & prediction.valid & (position > last)
        sure = sure & state.behind_given
        first = torch.where(sure.any(1), sure.int().argmax(1), state.end)
        return torch.minimum(first, super().ends(state, prediction, commit, memory))


@checked(but=("folder",))
def load_end_of_text(folder: str | Path, floor: float = 0.5, revision: str | None = None) -> LearnedStop:
    """Build the stop rule with the end-of-text predictor that lies beside a saved policy.

    Args:
        folder: The folder of the policy, with a folder `end_of_text` in it, or the name of its repository of the hub.
        floor: As for `LearnedStop`.
        revision: The revision of the hub repository.

    Returns:
        The stop rule.

    Raises:
        UserError: The predictor is missing or damaged.
    """
    return LearnedStop(load_predictor(folder, "end_of_text", "end_of_text", revision), floor)
