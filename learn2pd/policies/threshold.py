"""Threshold decoding (Fast-dLLM, arXiv 2505.22618): a step commits every proposal that is confident enough.

The rule: the policy commits every eligible position with

    confidence >= threshold.

Where it commits none, the loop adds the most confident position. The rule has no number of steps.

The option `one_more` is this project's addition. With it, every step also commits the most confident position below the
threshold. Decoding with one token a step would commit this position too. Such a commit often decides how the answer is
worded, and so makes other positions certain; the answer may be worded in another way than without the option.

Deviation from the authors' code: the confidence is a float32 softmax, and theirs is a float64 softmax.
"""

from __future__ import annotations

from torch import Tensor

from learn2pd.errors import check_probability
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class ThresholdPolicy(Policy):
    """Threshold decoding.

    Args:
        threshold: The least confidence of a position that is committed, 0 to 1.
        one_more: True also commits the most confident position below the threshold.

    Raises:
        ValueError: The threshold is not a number from 0 to 1.
    """

    name = "threshold"

    def __init__(self, threshold: float = 0.9, one_more: bool = False) -> None:
        self.threshold = check_probability("threshold", threshold)
        self.one_more = one_more

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        accepted = eligible & (prediction.confidence >= self.threshold)
        if not self.one_more:
            return Commit(accepted)
        surest = most_confident(prediction.confidence, eligible & ~accepted)
        return Commit(accepted | surest, forced=surest)
