"""DAWN (arXiv 2602.06953): attention says which proposals depend on each other.

The rule: A is the attention of every column to every column, as the mean over all heads and the last eighth of the
layers. A column with a mean attention above `sink` is a sink and does not count, and neither does a column's attention
to itself. Position i *attends to* j where what is left of A(i, j) is at least `edge`. An anchor is a token of the
prompt, or a committed position before the end of the window whose present confidence is at least `threshold`. The
policy commits

1. every eligible position with confidence >= `threshold`;
2. every eligible position that attends to an anchor, with confidence >= `induced_threshold`;
3. of the other eligible positions with confidence >= `low_threshold`, the most confident first, each one that attends
   to no position that this step commits.

Where it commits none, the loop adds the most confident position.

Deviations from the authors' code:

- Their search for the third set goes on when no position is left, and then "commits" position 0 of the sequence, so
  that the first token of the prompt is overwritten. Nothing before the canvas changes here.
- In the third set, theirs only keeps away from positions that are in the first set and attend to an anchor, where "or"
  is meant instead of "and".
- Theirs asks for a confidence of the prompt's tokens too before they count as anchors. A token of the prompt is certain
  here.
- Their layers are fixed to 28 to 31.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from learn2pd.errors import UserError, check_probability
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction

if TYPE_CHECKING:
    from learn2pd.method import Method


class DawnPolicy(Policy):
    """DAWN.

    Args:
        threshold: The least confidence of a position that is committed in any case, and of an anchor, 0 to 1.
        induced_threshold: The least confidence of a position that attends to an anchor, 0 to 1.
        low_threshold: The least confidence of the other positions, 0 to 1.
        sink: The mean attention above which a column is a sink, 0 to 1.
        edge: The least attention that counts, above 0 and at most 1.

    Raises:
        ValueError: A number is out of range.
    """

    name = "dawn"
    needs = frozenset({"attention"})
    scores_committed = True
    looks_ahead = True

    def __init__(
        self,
        threshold: float = 0.9,
        induced_threshold: float = 0.7,
        low_threshold: float = 0.7,
        sink: float = 0.01,
        edge: float = 0.07,
    ) -> None:
        if not 0 < edge <= 1:
            raise ValueError(f"edge={edge}: expected above 0, at most 1")
        self.threshold = check_probability("threshold", threshold)
        self.induced_threshold = check_probability("induced_threshold", induced_threshold)
        self.low_threshold = check_probability("low_threshold", low_threshold)
        self.sink = check_probability("sink", sink)
        self.edge = edge

    def check(self, spec: ModelSpec, method: Method) -> None:
        super().check(spec, method)
        if method.cache.keeps:
            raise UserError(
                f"policy {self.name!r} reads the attention of the whole sequence, cache {method.cache.name!r} "
                "recomputes a part of it: use cache none"
            )

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        confidence = prediction.confidence
        attends = self.attends(prediction, state)
        to_anchor = (attends & self.anchors(prediction, state)[:, None]).any(2)
        sure = eligible & (confidence >= self.threshold)
        induced = eligible & to_anchor & (confidence >= self.induced_threshold)
        among = attends[:, :, state.prompt_width :]  # [B, G, G]
        kept_away = self.kept_away(sure, induced, to_anchor)
        left = eligible & (confidence >= self.low_threshold) & ~sure & ~induced
        left = left & ~(among & kept_away[:, None]).any(2)
        committed = sure | induced
        for _ in range(int(left.sum(1).max())):  # this waits for the device
            best = most_confident(confidence, left)
            committed = committed | best
            left = left & ~best & ~(among & best[:, None]).any(2)
        return Commit(committed)

    def attends(self, prediction: Prediction, state: DecodeState) -> Tensor:
        """Mark the columns to which each position attends.

        Args:
            prediction: The proposals of this step.
            state: The state before the commit.

        Returns:
            [B, G, L] bool.
        """
        assert prediction.attention is not None
        attention = prediction.attention
        columns = attention.any(2).sum(1)  # [B], those that the forward computed and that attend to others
        sinks = attention.sum(1) / columns[:, None] > self.sink
        itself = torch.eye(attention.shape[1], dtype=torch.bool, device=attention.device)
        counts = attention.masked_fill(sinks[:, None] | itself, 0)
        return counts[:, state.prompt_width :] >= self.edge

    def anchors(self, prediction: Prediction, state: DecodeState) -> Tensor:
        """Mark the columns that are anchors.

        Args:
            prediction: The proposals of this step.
            state: The state before the commit.

        Returns:
            [B, L] bool.
        """
        position = torch.arange(state.gen_length, device=state.end.device)
        known = state.decided & prediction.valid & (position < state.window.stop[:, None])
        known = known & (prediction.confidence >= self.threshold)
        return functional.pad(known, (state.prompt_width, 0), value=True)

    def kept_away(self, sure: Tensor, induced: Tensor, to_anchor: Tensor) -> Tensor:
        """Mark the positions to which no position of the third set may attend.

        Args:
            sure: [B, G] bool, the first set.
            induced: [B, G] bool, the second set.
            to_anchor: [B, G] bool, the positions that attend to an anchor.

        Returns:
            [B, G] bool.
        """
        return sure | induced
