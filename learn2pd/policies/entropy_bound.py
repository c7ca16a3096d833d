"""EB-Sampler (arXiv 2505.24857): a step commits as many proposals as their entropies allow together.

The rule: the entropies of the eligible positions are sorted, H_1 <= H_2 <= ... The policy commits the longest prefix
1..k with

    H_1 + ... + H_k - max(H_1, ..., H_k) <= bound,

and so at least one position. The sum without the largest term bounds the error of committing the k proposals together.

Deviations from the authors' code: their code was not found. The rule is the one that third parties implement, in
PC-Sampler and in DiffusionGemma. They apply it to the whole canvas; here the scheduler says where it applies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.errors import check_not_negative
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class EntropyBoundPolicy(Policy):
    """EB-Sampler.

    Args:
        bound: The largest sum of entropies in nats, the largest entropy excepted; 0 or more, and finite. A larger bound
            is faster.

    Raises:
        ValueError: The bound is out of range.
    """

    name = "entropy_bound"
    needs = frozenset({"entropy"})

    def __init__(self, bound: float = 0.1) -> None:
        self.bound = check_not_negative("bound", bound)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        entropy = prediction.extra("entropy")
        ordered = entropy.masked_fill(~eligible, torch.inf).sort(1).values
        others = ordered.cumsum(1) - ordered  # [B, G]; it is NaN behind the eligible ones and passes no bound there
        return Commit(most_confident(-entropy, eligible, (others <= self.bound).sum(1)))
