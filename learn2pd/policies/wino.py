"""WINO (arXiv 2507.18578): a step drafts boldly, and takes back what the finished part of the block does not confirm.

The rule: with n eligible positions, a step drafts every eligible position with

    confidence > threshold,

at most min(max(floor(0.7 n), 5), 20) of them, the most confident first, and the most confident one where there is none.
If it drafts two or more, it also takes back the committed tokens of the window, whose steps lie before this one, with

    leave-one-out probability < threshold_back,

the least probable first, and fewer of them than the step before drafted. The leave-one-out probability of a token is
its probability given all tokens but itself. It comes from the same forward, in which a shadow column for each committed
token is computed; the result counts these columns.

A step takes back fewer tokens than the step before drafted, and the first step takes back none. After n steps at least
n tokens therefore stand, so that a run never takes more forwards than one token a step.

Deviations from the authors' code:

- Their shadow columns are a copy of the whole block, and they see each other: a shadow column sees, beside all tokens
  but its own, the masks that stand for the other tokens. Here a shadow column sees tokens alone, there is none for a
  position that is still masked, and the rule works with shifted logits too.
- Their code works on one prompt at a time and without a cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.errors import check_probability
from learn2pd.roles import REVISIONS, Policy
from learn2pd.tensors import most_confident, revisable
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory

SHARE, LEAST, MOST = 0.7, 5, 20  # the largest number of drafts: a share of the masks, with these bounds


@dataclass(frozen=True)
class Drafted(RowMemory):
    """The drafts of the last step.

    Attributes:
        count: [B] long.
    """

    count: Tensor


class WinoPolicy(Policy):
    """WINO.

    Args:
        threshold: The confidence above which a position is drafted, 0 to 1. The authors use 0.5 to 0.8 by task.
        threshold_back: The leave-one-out probability below which a token is taken back, 0 to 1.

    Raises:
        ValueError: A number is out of range.
    """

    name = "wino"
    needs = frozenset({"leave_one_out"})
    revisions = REVISIONS

    def __init__(self, threshold: float = 0.6, threshold_back: float = 0.9) -> None:
        self.threshold = check_probability("threshold", threshold)
        self.threshold_back = check_probability("threshold_back", threshold_back)

    def start(self, state: DecodeState, spec: ModelSpec) -> Drafted:
        return Drafted(torch.ones_like(state.end))

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Drafted) -> Commit:
        limit = (SHARE * eligible.sum(1).double()).long().clamp(LEAST, MOST)
        drafted = most_confident(prediction.confidence, eligible & (prediction.confidence > self.threshold), limit)
        surest = most_confident(prediction.confidence, eligible) & ~drafted.any(1, keepdim=True)
        count = (drafted | surest).sum(1)
        probability = prediction.extra("leave_one_out")
        doubtful = revisable(state, self.revisions) & (probability < self.threshold_back) & (count > 1)[:, None]
        doubtful = most_confident(-probability, doubtful, memory.count - 1)
        return Commit(drafted | surest, revoke=doubtful, forced=surest, memory=Drafted(count))
