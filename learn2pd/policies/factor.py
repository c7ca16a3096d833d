"""Factor decoding (Fast-dLLM, arXiv 2505.22618): commit as many proposals as stay safe together.

Confidences of the eligible positions sorted, c_1 >= c_2 >= ...: rank i is taken while every rank up to it has c_i >= 1 - f / (i + 1);
rank 1 is always taken. For f = 1 that is the paper's bound under which greedy parallel decoding equals greedy sequential decoding.

Deviation from the authors' code: where the first failing rank is the last one, theirs commits it all the same, because the scan cannot
tell "failed at the last" from "reached the end". `reference_quirks=True` does so too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.tensors import most_confident
from learn2pd.types import Commit, DecodeState, Prediction


class FactorPolicy:
    """Args: factor, f above; larger is faster. reference_quirks, see above."""

    name = "factor"
    needs: frozenset[str] = frozenset()
    scores_committed = False
    window_width: int | None = None

    def __init__(self, factor: float = 1.0, reference_quirks: bool = False) -> None:
        if not 0 < factor < float("inf"):
            raise ValueError(f"factor={factor}: expected above 0, and finite")
        self.factor, self.reference_quirks = factor, reference_quirks

    def start(self, state: DecodeState) -> None:
        return None

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        ordered = prediction.confidence.masked_fill(~eligible, -torch.inf).sort(1, descending=True).values
        rank = torch.arange(1, ordered.shape[1] + 1, device=ordered.device)
        passes = (ordered >= 1 - self.factor / (rank + 1)) | (rank == 1)
        count = passes.int().cumprod(1).sum(1)  # [B] ranks before the first failing one
        if self.reference_quirks:
            candidates = eligible.sum(1)
            count = torch.where(count == candidates - 1, candidates, count)
        return Commit(most_confident(prediction.confidence, eligible, count))
