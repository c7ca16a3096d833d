"""LocalLeap (arXiv 2510.07081): near a proposal that is certain, a relaxed threshold will do.

Anchors are the eligible positions with confidence >= threshold. A position is committed if it is an anchor, or if it lies within `radius`
positions of one and has confidence >= relaxed_threshold, or if it is the most confident (the loop's rule). Only anchors of the current
step count; tokens committed earlier extend nothing.

Deviations from the authors' code (read in a benchmark's copy): none.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from learn2pd.types import Commit, DecodeState, Prediction


class LocalLeapPolicy:
    """Args: threshold and relaxed_threshold, confidences from 0 to 1, the latter at most the former (0.75 LLaDA, 0.8 Dream); radius, positions."""

    name = "localleap"
    needs: frozenset[str] = frozenset()
    scores_committed = False
    window_width: int | None = None

    def __init__(self, threshold: float = 0.9, relaxed_threshold: float = 0.75, radius: int = 4) -> None:
        if not 0 <= relaxed_threshold <= threshold <= 1:
            raise ValueError(f"threshold={threshold}, relaxed_threshold={relaxed_threshold}: expected 0 <= relaxed_threshold <= threshold <= 1")
        if radius < 0:
            raise ValueError(f"radius={radius}: expected at least 0")
        self.threshold, self.relaxed_threshold, self.radius = threshold, relaxed_threshold, radius

    def start(self, state: DecodeState) -> None:
        return None

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        anchors = eligible & (prediction.confidence >= self.threshold)
        near = functional.max_pool1d(anchors.float()[:, None], 2 * self.radius + 1, stride=1, padding=self.radius)[:, 0] > 0
        return Commit(anchors | (eligible & near & (prediction.confidence >= self.relaxed_threshold)))
