"""Factor decoding (Fast-dLLM, arXiv 2505.22618): a step commits as many proposals as are safe together.

The rule: the confidences of the eligible positions are sorted, c_1 >= c_2 >= ... Rank 1 is always committed. Rank i is
committed if every rank j from 2 to i satisfies

    c_j >= 1 - f / (j + 1).

For f = 1 this is the paper's bound under which greedy parallel decoding equals greedy sequential decoding.

Deviation from the authors' code: where the last rank is the first one to fail, their code commits it all the same,
because their scan cannot tell "failed at the last rank" from "reached the end". Here it is not committed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.roles import Policy
from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class FactorPolicy(Policy):
    """Factor decoding.

    Args:
        factor: f, above 0 and finite. A larger factor is faster.

    Raises:
        ValueError: The factor is out of range.
    """

    name = "factor"

    def __init__(self, factor: float = 1.0) -> None:
        if not 0 < factor < float("inf"):
            raise ValueError(f"factor={factor}: expected above 0, and finite")
        self.factor = factor

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        return Commit(most_confident(prediction.confidence, eligible, self.count(prediction.confidence, eligible)))

    def count(self, confidence: Tensor, eligible: Tensor) -> Tensor:
        """Count the most confident eligible positions that are safe together.

        Args:
            confidence: [B, G] float.
            eligible: [B, G] bool.

        Returns:
            [B] long.
        """
        ordered = confidence.masked_fill(~eligible, -torch.inf).sort(1, descending=True).values
        rank = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        passes = (ordered >= 1 - self.factor / (rank + 1)) | (rank == 1)
        return passes.int().cumprod(1).sum(1)
