"""Questions: each kind of predictor answers one question about recorded states.

A question says which window the network sees, which label every position has, and which positions count in the loss and
in the metrics. Each kind has a file of its own (filter.py, end_of_text.py, boundary.py, keep.py), which also holds the
component that asks the trained network during a run.

In the shapes, N is the number of recorded states, G of canvas positions, W of positions of a window, C of channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from learn2pd.predictors.features import WINDOW_COLUMNS, cut, stack
from learn2pd.predictors.networks import PredictorNetwork
from learn2pd.tensors import window_view
from learn2pd.types import Window

TOP_TOKENS = 4  # most probable tokens of a position, as the loop gives them
CHECKED = ("checked", "checked_together")  # the kinds of labels that are known at some positions only
Columns = dict[str, Tensor]  # the columns of recorded states by name, [N, G] or [N] each


class Question(Protocol):
    """A question that a predictor answers.

    Attributes:
        kind: The name of the kind of predictor.
        of_committed: True where the question is about committed positions. The other questions are about masked ones.
    """

    kind: ClassVar[str]
    of_committed: ClassVar[bool]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of recorded states that the question needs beside `features.OBSERVED`."""

    @classmethod
    def of(cls, description: Mapping[str, Any], loss_on: str) -> Question:
        """Make the question for a recording.

        Args:
            description: The description of the recording.
            loss_on: The positions that the filter's loss counts; the other kinds ignore it.
        """

    def window(self, columns: Columns) -> Window:
        """Return the window that the network sees in each state."""

    def label(self, columns: Columns) -> Tensor:
        """Return the right answer at every position, [N, G] bool."""

    def counted(self, columns: Columns) -> Tensor:
        """Return the positions that the training loss counts, [N, G] bool."""

    def judged(self, columns: Columns) -> Tensor:
        """Return the positions that the metrics count, whatever the loss counts, [N, G] bool."""


def positions(columns: Columns) -> Tensor:
    """Return the numbers of the canvas positions, [G] long."""
    return torch.arange(columns["masked"].shape[1])


class Batch(NamedTuple):
    """Recorded states as a network sees them, with the right answers.

    Attributes:
        inputs: [N, W, C] float32, the channels.
        valid: [N, W] bool, the positions inside the window.
        proposal: [N, W] long, as in `View`.
        label: [N, W] float32, 1 for "yes".
        counted: [N, W] bool, the positions that the training loss counts.
        judged: [N, W] bool, the positions that the metrics count.
        asked: [N, W] bool, the positions about which a run asks: the masked ones, or the committed ones.
        overlap: [N, W, W] float32, as in `View`; None where the network does not see it.
    """

    inputs: Tensor
    valid: Tensor
    proposal: Tensor
    label: Tensor
    counted: Tensor
    judged: Tensor
    asked: Tensor
    overlap: Tensor | None = None

    def rows(self, numbers: Tensor) -> Batch:
        """Return some of the states.

        Args:
            numbers: The numbers of the states.
        """
        values = {name: value[numbers] for name, value in self._asdict().items() if value is not None}
        return Batch(**values)

    @property
    def seen(self) -> tuple[Tensor, ...]:
        """The arguments of a network's `forward`."""
        return self.inputs, self.valid, self.proposal, *(() if self.overlap is None else (self.overlap,))


def make_batch(columns: Columns, question: Question, network: PredictorNetwork) -> Batch:
    """Make a batch of recorded states.

    Args:
        columns: The columns of the states.
        question: The question that the network answers.
        network: The network; its channels decide on the inputs.

    Returns:
        The batch.
    """
    window = question.window(columns)
    width = network.width or window.width
    several = {name: columns[name].view(len(columns[name]), -1, count) for name, count in several_of(network).items()}
    columns = {name: values for name, values in columns.items() if name not in WINDOW_COLUMNS} | several
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
        view.masked ^ question.of_committed,
        view.overlap if network.overlap else None,
    )


def several_of(network: PredictorNetwork) -> dict[str, int]:
    """Return the recorded columns of a network that hold several values for a position, with the number of values.

    Args:
        network: The network.
    """
    hidden = {"hidden": network.hidden_states} if network.hidden_states else {}
    return hidden | ({"top_ids": TOP_TOKENS, "top_shares": TOP_TOKENS} if network.overlap else {})
