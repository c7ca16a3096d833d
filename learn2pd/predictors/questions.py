"""What a predictor is asked about recorded states, and where: the window it sees, the label of every position, and which positions count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from learn2pd.predictors.features import cut, stack
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.tensors import window_view
from learn2pd.types import Window

Columns = dict[str, Tensor]  # of recorded states, [N, G] or [N] by name


class Question(Protocol):
    """What a predictor is asked. All [N, G] bool but the window."""

    kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]  # beside OBSERVED

    def window(self, columns: Columns) -> Window: ...

    def label(self, columns: Columns) -> Tensor: ...

    def counted(self, columns: Columns) -> Tensor:
        """Positions that the training loss counts."""

    def judged(self, columns: Columns) -> Tensor:
        """Positions that the metrics count, whatever the loss does."""


@dataclass(frozen=True)
class Final:
    """The filter's question: is this proposal final? In the window that was decoded.

    `loss_on=masked` counts what is still to decode; `answer` leaves out the padding behind the answer's end-of-text: better at answers, and
    slow without a stop rule, since padding is not accepted; the paper's `all` also rewards recognising positions that are decided.
    """

    loss_on: str = "masked"
    kind: ClassVar[str] = "filter"
    columns: ClassVar[tuple[str, ...]] = ("start", "stop", "label", "length")

    def window(self, columns: Columns) -> Window:
        return Window(columns["start"].long(), columns["stop"].long())

    def label(self, columns: Columns) -> Tensor:
        return columns["label"]

    def counted(self, columns: Columns) -> Tensor:
        if self.loss_on == "answer":
            return self._answer(columns)
        return columns["masked"] if self.loss_on == "masked" else torch.ones_like(columns["masked"])

    def judged(self, columns: Columns) -> Tensor:
        return self._answer(columns)

    def _answer(self, columns: Columns) -> Tensor:
        return columns["masked"] & (_positions(columns) <= columns["length"][:, None])


@dataclass(frozen=True)
class Ended:
    """The question of the stop rule `learned`: has the answer ended before this position? Over the whole canvas."""

    kind: ClassVar[str] = "end_of_text"
    columns: ClassVar[tuple[str, ...]] = ("length",)

    def window(self, columns: Columns) -> Window:
        zeros = torch.zeros(len(columns["masked"]), dtype=torch.long)
        return Window(zeros, zeros + columns["masked"].shape[1])

    def label(self, columns: Columns) -> Tensor:
        return _positions(columns) >= columns["length"][:, None]

    def counted(self, columns: Columns) -> Tensor:
        return columns["masked"]

    def judged(self, columns: Columns) -> Tensor:
        return columns["masked"]


@dataclass(frozen=True)
class StepEnd:
    """The question of the scheduler `adablock_learned`: does a step of the answer, such as a line, end at this position?

    Args:
        delimiter_ids: tokens that end a step.
        reach: tokens ahead of the first mask that are looked at.
    """

    delimiter_ids: tuple[int, ...]
    reach: int
    kind: ClassVar[str] = "boundary"
    columns: ClassVar[tuple[str, ...]] = ("reference", "length")

    def window(self, columns: Columns) -> Window:
        start = columns["masked"].int().argmax(1)
        return Window(start, (start + self.reach).clamp_max(columns["masked"].shape[1]))

    def label(self, columns: Columns) -> Tensor:
        return torch.isin(columns["reference"], torch.tensor(self.delimiter_ids)) & (_positions(columns) < columns["length"][:, None])

    def counted(self, columns: Columns) -> Tensor:
        return columns["masked"]

    def judged(self, columns: Columns) -> Tensor:
        return columns["masked"]


def _positions(columns: Columns) -> Tensor:
    return torch.arange(columns["masked"].shape[1])


class Batch(NamedTuple):
    inputs: Tensor  # [N, W, C] float32
    valid: Tensor  # [N, W] bool, inside the window
    proposal: Tensor  # [N, W] long, see `View`
    label: Tensor  # [N, W] float32
    counted: Tensor  # [N, W] bool
    judged: Tensor  # [N, W] bool
    masked: Tensor  # [N, W] bool, still to decode

    @property
    def seen(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a network's `forward` takes."""
        return self.inputs, self.valid, self.proposal


def make_batch(columns: Columns, question: Question, network: PredictorNetwork) -> Batch:
    """What `network` sees of recorded states, and what is asked."""
    window = question.window(columns)
    width = network.width or int((window.stop - window.start).max())
    view = cut(columns, window, width, network.sees_committed)
    label, counted, judged = (window_view(found(columns), window, width) for found in (question.label, question.counted, question.judged))
    return Batch(stack(view, network.channels), view.valid, view.proposal, label.float(), counted & view.valid, judged & view.valid, view.masked)
