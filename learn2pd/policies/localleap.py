"""LocalLeap (arXiv 2510.07081): a lower threshold holds for the neighbours of a proposal that is certain.

The rule: an anchor is an eligible position with

    confidence >= threshold.

The policy commits every anchor, and every eligible position that lies at most `radius` positions from an anchor and has

    confidence >= relaxed_threshold.

Where it commits none, the loop adds the most confident position. Only anchors of the present step count: tokens that
were committed earlier are no anchors.

Deviations from the authors' code: none. Their code was read in the copy that a benchmark holds.
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
        threshold: The least confidence of an anchor, 0 to 1.
        relaxed_threshold: The least confidence near an anchor, at most `threshold`. The authors use 0.75 for LLaDA and
            0.8 for Dream.
        radius: The largest distance from an anchor, in positions.

    Raises:
        ValueError: A number is out of range.
    """

    name = "localleap"

    def __init__(self, threshold: float = 0.9, relaxed_threshold: float = 0.75, radius: int = 4) -> None:
        if not 0 <= relaxed_threshold <= threshold <= 1:
            raise ValueError(
                f"threshold={threshold}, relaxed_threshold={relaxed_threshold}: "
                "expected 0 <= relaxed_threshold <= threshold <= 1"
            )
        self.threshold = threshold
        self.relaxed_threshold = relaxed_threshold
        self.radius = check_at_least(0, "radius", radius)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        anchors = eligible & (prediction.confidence >= self.threshold)
        marks = anchors.float()[:, None]  # [B, 1, G]
        radius = min(self.radius, eligible.shape[1])  # a larger one reaches no more positions and takes more time
        near = functional.max_pool1d(marks, 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0
        return Commit(anchors | (eligible & near & (prediction.confidence >= self.relaxed_threshold)))
