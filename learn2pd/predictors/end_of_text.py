"""The end-of-text predictor as a stop rule (ours): a trained network says where the answer has ended.

The row ends at the first masked position that the network puts behind the answer's end with more than its threshold, and that has no
committed token of an answer behind it. As with the rule `eot` it also ends after an end-of-text that was committed. The threshold is
calibrated to cut no answer short on held-out prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from learn2pd.predictors.apply import NetworkMemory, check_contract, needs_of, on_device, probability
from learn2pd.predictors.networks import Conv, PredictorNetwork
from learn2pd.predictors.questions import Columns, positions
from learn2pd.predictors.saving import Predictor, load_predictor, saved_folder
from learn2pd.stops.eot import EotStop
from learn2pd.tensors import is_among
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, Window

if TYPE_CHECKING:
    from learn2pd.method import Method

CHANNELS = (
    "log_odds",
    "masked",
    "end_of_text",
)  # a stop rule sees these without asking the model for more, at any canvas length


@dataclass(frozen=True)
class Ended:
    """The question of the stop rule `learned`, over the whole canvas: has the answer ended before this position?"""

    kind: ClassVar[str] = "end_of_text"
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
    def of(cls, manifest: Mapping[str, Any], loss_on: str) -> Ended:
        return cls()

    @staticmethod
    def network() -> PredictorNetwork:
        """An untrained network."""
        return Conv(CHANNELS, hidden=16)


@dataclass(frozen=True)
class EndMemory(NetworkMemory):
    """The network, and the ids that end an answer."""

    eot_ids: tuple[int, ...]


class LearnedStop(EotStop):
    """End where a trained network says that the answer has ended.

    Args:
        predictor: of kind end_of_text.
        floor: as for `eot`.
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
        return {"folder": str(Path(saved_folder(self.predictor)).parent), "floor": self.floor}

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        check_contract(self.predictor, spec, method)

    def start(self, state: DecodeState, spec: ModelSpec) -> EndMemory:
        return EndMemory(on_device(self.predictor, state).network, spec.eot_ids)

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: EndMemory) -> Tensor:
        position = torch.arange(state.gen_length, device=state.end.device)
        zeros = torch.zeros_like(state.end)
        canvas = Window(zeros, zeros + state.gen_length)
        ended = probability(memory.network, self.predictor.contract, state, prediction, canvas, state.gen_length)
        tokens = torch.where(commit.mask, prediction.tokens if commit.tokens is None else commit.tokens, state.canvas)
        answer = (~state.masked | commit.mask) & ~is_among(tokens, memory.eot_ids)
        last = torch.where(answer, position, -1).amax(1, keepdim=True)  # [B, 1] nothing that was written is taken back
        sure = (ended > self.predictor.threshold) & state.masked & prediction.valid & (position > last)
        first = torch.where(sure.any(1), sure.int().argmax(1), state.end)
        return torch.minimum(first, super().ends(state, prediction, commit, memory))


def load_end_of_text(folder: str | Path, floor: float = 0.5) -> LearnedStop:
    """The stop rule with the end-of-text predictor beside the policy in `folder`.

    Raises:
        UserError: it is missing or damaged.
    """
    return LearnedStop(load_predictor(Path(folder) / "end_of_text", "end_of_text"), floor)
