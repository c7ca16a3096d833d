"""Entropy-bounded commits of a block (JetEngine, the engine of SDAR, arXiv 2510.06303).

The rule: the entropies of the eligible positions are sorted, H_1 <= H_2 <= ... The policy commits the longest prefix
1..k with

    H_1 + ... + H_k < bound,

and at least the position of the lowest entropy. EB-Sampler leaves the largest entropy out of its sum; this rule does
not, so that the same bound commits fewer tokens.

Deviations from the authors' code: none. SDAR's own generate.py names the rule, and fails on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.errors import check_not_negative
from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class EntropySumPolicy(Policy):
    """Entropy-bounded commits.

    Args:
        bound: The sum of entropies, in nats, that a step stays below; 0 or more. A larger bound is faster.

    Raises:
        ValueError: The bound is out of range.
    """

    name = "entropy_sum"
    needs = frozenset({"entropy"})

    def __init__(self, bound: float = 0.35) -> None:
        self.bound = check_not_negative("bound", bound)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        entropy = prediction.extra("entropy")
        ordered = entropy.masked_fill(~eligible, torch.inf).sort(1).values
        count = (ordered.cumsum(1) < self.bound).sum(1).clamp_min(1)
        return Commit(most_confident(-entropy, eligible, count))
