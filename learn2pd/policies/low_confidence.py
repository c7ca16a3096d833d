"""Low-confidence decoding of block-causal models (SDAR, arXiv 2510.06303; LLaDA2, arXiv 2512.15745).

The rule: a step commits every eligible position with

    confidence > threshold

if they are at least `tokens_per_step`. Otherwise it commits the `tokens_per_step` most confident ones, or all where
fewer are left. SDAR calls this low_confidence_dynamic, and with a threshold of 1, which no confidence exceeds, it is
low_confidence_static. LLaDA2's threshold with quota is the same rule.

Deviations from the authors' code:

- They share the B tokens of a block out over D steps, so that the first B mod D steps commit one more. Here every step
  has the same number. The two are equal where D divides B.
- Where fewer positions than the quota are left, SDAR's generate.py fills its quota with tokens that are committed
  already, and overwrites them, the prompt's too.
"""

from __future__ import annotations

from torch import Tensor

from learn2pd.errors import check_at_least, check_probability
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class LowConfidencePolicy(Policy):
    """Low-confidence decoding.

    Args:
        threshold: The confidence that a position must exceed, 0 to 1.
        tokens_per_step: The positions that a step commits at least, as long as so many are left, at least 1.

    Raises:
        ValueError: A number is out of range.
    """

    name = "low_confidence"

    def __init__(self, threshold: float = 0.9, tokens_per_step: int = 1) -> None:
        self.threshold = check_probability("threshold", threshold)
        self.tokens_per_step = check_at_least(1, "tokens_per_step", tokens_per_step)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        sure = eligible & (prediction.confidence > self.threshold)
        enough = sure.sum(1, keepdim=True) >= self.tokens_per_step
        return Commit(sure & enough | most_confident(prediction.confidence, eligible, self.tokens_per_step) & ~enough)
