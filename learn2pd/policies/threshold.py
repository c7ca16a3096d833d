"""Threshold decoding (Fast-dLLM, arXiv 2505.22618).

Commit every eligible position with confidence >= threshold, and always the most confident one (the loop's rule). `steps` plays no part.
`one_more` is this project's addition: every step also commits the most confident of the positions below the threshold. Such a choice is the
one that one token a step would make. It often decides a wording and so makes other positions certain; the answer may then be worded otherwise.

Deviation from the authors' code: confidence is a float32 softmax, theirs float64.
"""

from __future__ import annotations

from torch import Tensor

from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class ThresholdPolicy(Policy):
    """Commit every eligible proposal of at least `threshold` confidence.

    Args:
        threshold: confidence, 0 to 1.
        one_more: also commit the most confident position below it (ours).

    Raises:
        ValueError: for a number that is no confidence.
    """

    name = "threshold"

    def __init__(self, threshold: float = 0.9, one_more: bool = False) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: expected a confidence from 0 to 1")
        self.threshold = threshold
        self.one_more = one_more

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        accepted = eligible & (prediction.confidence >= self.threshold)
        if not self.one_more:
            return Commit(accepted)
        surest = most_confident(prediction.confidence, eligible & ~accepted)
        return Commit(accepted | surest, forced=surest)
