"""Factor decoding (Fast-dLLM, arXiv 2505.22618): commit as many proposals as stay safe together.

Confidences of the eligible positions sorted, c_1 >= c_2 >= ...: rank i is taken while every rank up to it has c_i >= 1 - f / (i + 1);
rank 1 is always taken. For f = 1 that is the paper's bound under which greedy parallel decoding equals greedy sequential decoding.

Deviation from the authors' code: where the first failing rank is the last one, theirs commits it all the same, because the scan cannot
tell "failed at the last" from "reached the end".
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
        factor: f, above 0; larger is faster.

    Raises:
        ValueError: for another number.
    """

    name = "factor"

    def __init__(self, factor: float = 1.0) -> None:
        if not 0 < factor < float("inf"):
            raise ValueError(f"factor={factor}: expected above 0, and finite")
        self.factor = factor

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        return Commit(most_confident(prediction.confidence, eligible, self.count(prediction.confidence, eligible)))

    def count(self, confidence: Tensor, eligible: Tensor) -> Tensor:
        """[B] long: how many of the most confident eligible positions are safe together."""
        ordered = confidence.masked_fill(~eligible, -torch.inf).sort(1, descending=True).values
        rank = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        passes = (ordered >= 1 - self.factor / (rank + 1)) | (rank == 1)
        return passes.int().cumprod(1).sum(1)
