"""LocalLeap (arXiv 2510.07081): near a proposal that is certain, a relaxed threshold will do.

Anchors are the eligible positions with confidence >= threshold. A position is committed if it is an anchor, or if it lies within `radius`
positions of one and has confidence >= relaxed_threshold, or if it is the most confident (the loop's rule). Only anchors of the current
step count; tokens committed earlier extend nothing.

Deviations from the authors' code (read in a benchmark's copy): none.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from learn2pd.errors import check_at_least
from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, Prediction


class LocalLeapPolicy(Policy):
    """LocalLeap.

    Args:
        threshold: confidence of an anchor, 0 to 1.
        relaxed_threshold: confidence near an anchor, at most `threshold`; the authors use 0.75 for LLaDA, 0.8 for Dream.
        radius: positions that are near.

    Raises:
        ValueError: for a number out of range.
    """

    name = "localleap"

    def __init__(self, threshold: float = 0.9, relaxed_threshold: float = 0.75, radius: int = 4) -> None:
        if not 0 <= relaxed_threshold <= threshold <= 1:
            raise ValueError(
                f"threshold={threshold}, relaxed_threshold={relaxed_threshold}: expected 0 <= relaxed_threshold <= threshold <= 1"
            )
        self.threshold = threshold
        self.relaxed_threshold = relaxed_threshold
        self.radius = check_at_least(0, "radius", radius)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        anchors = eligible & (prediction.confidence >= self.threshold)
        near = (
            functional.max_pool1d(anchors.float()[:, None], 2 * self.radius + 1, stride=1, padding=self.radius)[:, 0]
            > 0
        )
        return Commit(anchors | (eligible & near & (prediction.confidence >= self.relaxed_threshold)))
