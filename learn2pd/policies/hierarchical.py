"""Hierarchical decoding (dInfer, arXiv 2510.08666): every run of masks is halved in each step.

The rule: a segment is a longest run of eligible positions. The policy commits an eligible position that is the most
confident one of its segment with

    confidence > low_threshold,

and every eligible position with

    confidence > threshold.

Where it commits none, the loop adds the most confident position.

With `remask_threshold`, the committed positions of the window at which the model's present confidence, whatever token
it is in, is

    confidence < remask_threshold

are in doubt. They compete with the masked positions as if they were masked too. At least one position more is committed
than there are in doubt: the most confident ones of the rest are added. What is in doubt and not committed again is
taken back.

Deviations from the authors' code: none that changes a token. Their function with remasking is in no decoder of theirs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from learn2pd.errors import check_probability
from learn2pd.roles import REVISIONS, Policy
from learn2pd.tensors import most_confident, revisable
from learn2pd.types import Commit, DecodeState, Prediction


class HierarchicalPolicy(Policy):
    """Hierarchical decoding.

    Args:
        threshold: The confidence above which every position is committed, 0 to 1.
        low_threshold: The confidence above which the best position of a segment is committed, at most `threshold`.
        remask_threshold: The confidence below which a committed position is taken back, 0 to 1; None takes none back.

    Raises:
        ValueError: A number is out of range.
    """

    name = "hierarchical"

    def __init__(
        self, threshold: float = 0.9, low_threshold: float = 0.4, remask_threshold: float | None = None
    ) -> None:
        if not 0 <= low_threshold <= threshold <= 1:
            raise ValueError(
                f"threshold={threshold}, low_threshold={low_threshold}: expected 0 <= low_threshold <= threshold <= 1"
            )
        self.threshold = threshold
        self.low_threshold = low_threshold
        self.remask_threshold = (
            None if remask_threshold is None else check_probability("remask_threshold", remask_threshold)
        )
        self.scores_committed = remask_threshold is not None
        self.revisions = 0 if remask_threshold is None else REVISIONS

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Any) -> Commit:
        confidence = prediction.confidence
        if self.remask_threshold is None:
            return Commit(self._above(confidence, eligible))
        doubtful = revisable(state, self.revisions) & prediction.valid & (confidence < self.remask_threshold)
        candidates = eligible | doubtful
        committed = self._above(confidence, candidates)
        missing = doubtful.sum(1) + 1 - committed.sum(1)
        added = most_confident(confidence, candidates & ~committed, missing.clamp_min(0))
        kept = committed | added
        written = kept & (eligible | (prediction.tokens != state.canvas))
        return Commit(written, revoke=doubtful & ~kept, forced=added & written)

    def _above(self, confidence: Tensor, candidates: Tensor) -> Tensor:
        """Mark the candidates above `threshold`, and the best of each segment above `low_threshold`."""
        best = candidates & (confidence >= segment_best(confidence, candidates)) & (confidence > self.low_threshold)
        return best | (candidates & (confidence > self.threshold))


def segment_best(confidence: Tensor, eligible: Tensor) -> Tensor:
    """Return the largest confidence of the segment of each eligible position.

    Args:
        confidence: [B, G] float, 0 or more.
        eligible: [B, G] bool. A segment is a longest run of True.

    Returns:
        [B, G] float, without meaning where `eligible` is False.
    """
    number = (~eligible).cumsum(1)  # [B, G] long, the same for all positions of a segment
    best = confidence.new_zeros(len(confidence), confidence.shape[1] + 1)
    best = best.scatter_reduce(1, number, confidence.masked_fill(~eligible, 0), "amax")
    return best.gather(1, number)
