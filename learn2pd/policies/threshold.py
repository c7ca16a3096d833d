"""Threshold decoding (Fast-dLLM, arXiv 2505.22618).

Commit every eligible position with confidence >= threshold, and always the most confident one (the loop's rule). `steps` plays no part.
`one_more` is this project's addition: every step also commits the most confident of the positions below the threshold, a free choice as one
token a step makes it. It often decides a wording, which makes others certain; what is written may be worded in another way.

Deviation from the authors' code: confidence is a float32 softmax, theirs float64.
"""

from __future__ import annotations

from torch import Tensor

from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class ThresholdPolicy:
    """Args: threshold, confidence from 0 to 1; one_more, also commit the most confident position below it."""

    name = "threshold"
    needs: frozenset[str] = frozenset()
    scores_committed = False
    window_width: int | None = None

    def __init__(self, threshold: float = 0.9, one_more: bool = False) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: expected a confidence from 0 to 1")
        self.threshold, self.one_more = threshold, one_more

    def start(self, state: DecodeState) -> None:
        return None

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        accepted = eligible & (prediction.confidence >= self.threshold)
        if not self.one_more:
            return Commit(accepted)
        surest = most_confident(prediction.confidence, eligible & ~accepted)
        return Commit(accepted | surest, forced=surest)
