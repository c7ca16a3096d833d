"""What a kind of predictor is: the question it is asked of recorded states, its network where none is configured.

A question says which window the network sees, the label of every position, and which positions count. Each kind has a file of its own
(filter.py, end_of_text.py, boundary.py), which also holds the component that asks the trained network in a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from learn2pd.predictors.features import cut, stack
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.tensors import window_view
from learn2pd.types import Window

Columns = dict[str, Tensor]  # of recorded states, [N, G] or [N] by name


class Question(Protocol):
    """What a predictor is asked.

    Attributes:
        kind: name of the kind of predictor.
        columns: what the question needs of recorded states beside `features.OBSERVED`.
    """

    kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    @classmethod
    def of(cls, manifest: Mapping[str, Any], loss_on: str) -> Question:
        """The question for a recording.

        Args:
            manifest: of the recording.
            loss_on: which positions the filter's loss counts; the other kinds have no choice.
        """

    def window(self, columns: Columns) -> Window:
        """The window that the network sees."""

    def label(self, columns: Columns) -> Tensor:
        """[N, G] bool, the right answer at every position."""

    def counted(self, columns: Columns) -> Tensor:
        """[N, G] bool, positions that the training loss counts."""

    def judged(self, columns: Columns) -> Tensor:
        """[N, G] bool, positions that the metrics count, whatever the loss does."""


def positions(columns: Columns) -> Tensor:
    """[G] long."""
    return torch.arange(columns["masked"].shape[1])


class Batch(NamedTuple):
    """Recorded states as a network sees them, and what is asked; N states, W positions."""

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
    asked = (question.label, question.counted, question.judged)
    label, counted, judged = (window_view(ask(columns), window, width) for ask in asked)
    return Batch(
        stack(view, network.channels),
        view.valid,
        view.proposal,
        label.float(),
        counted & view.valid,
        judged & view.valid,
        view.masked,
    )
