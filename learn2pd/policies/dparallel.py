"""The decoding rule of dParallel (arXiv 2509.26488): a step commits every proposal whose entropy is low enough.

The rule: the policy commits every eligible position with

    entropy <= threshold,

and the one with the lowest entropy in any case. The paper also distils the model, so that its entropies fall early;
this file is the decoding rule alone, which works with any model.

Deviation from the authors' code: the entropy is a float32 number, and theirs is a float64 number.
"""

from __future__ import annotations

from torch import Tensor

from learn2pd.errors import check_not_negative
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class DParallelPolicy(Policy):
    """The decoding rule of dParallel.

    Args:
        threshold: The largest entropy of a position that is committed, in nats; 0 or more, and finite.

    Raises:
        ValueError: The threshold is out of range.
    """

    name = "dparallel"
    needs = frozenset({"entropy"})

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = check_not_negative("threshold", threshold)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        entropy = prediction.extra("entropy")
        return Commit((eligible & (entropy <= self.threshold)) | most_confident(-entropy, eligible))
