"""What a policy is: given the proposals of a step and the positions it may use, which of them to commit."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from learn2pd.types import Commit, DecodeState, Prediction


class Policy(Protocol):
    name: str
    needs: frozenset[str]  # of the prediction: "margin", "entropy", "logits"
    scores_committed: bool  # True: wants proposals at committed positions of the window too
    window_width: int | None  # the only window length it works at; None for any

    def start(self, state: DecodeState) -> Any:
        """Memory of one run; a policy itself never changes."""

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Any) -> Commit:
        """Choose among `eligible` [B, G] bool. Rows without eligible positions are ignored."""


def most_confident(confidence: Tensor, eligible: Tensor, count: Tensor | int = 1) -> Tensor:
    """[B, G] bool: the `count` ([B] or one number) most confident eligible positions of each row, the leftmost first on a tie."""
    if isinstance(count, int) and count == 1:
        best = confidence.masked_fill(~eligible, -torch.inf).argmax(1, keepdim=True)
        return torch.zeros_like(eligible).scatter_(1, best, True) & eligible
    order = confidence.masked_fill(~eligible, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    limit = count if isinstance(count, int) else count[:, None]
    return (rank < limit) & eligible
