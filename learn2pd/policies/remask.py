"""Targeted remasking (T2M, arXiv 2604.18738): a committed token that has become improbable is taken back.

The rule: the frame is that of `checked_block.py`. A step takes back every committed token of the window, other than the
caller's, with

    probability of the token that stands there < remask_threshold,

at most `per_position` times at each position. The probability is that of the present forward, in which the model sees
the token. A step takes back at most `share` of the committed tokens of the window, rounded down but at least one, the
least probable first.

Deviations from the authors' code: of its three strategies only the one that the paper proposes (`low_prob`) is here.
The code has other defaults than its description; the defaults here are those of the description.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.errors import check_at_least, check_probability
from learn2pd.policies.checked_block import Checked, CheckedBlockPolicy
from learn2pd.tensors import most_confident
from learn2pd.types import DecodeState, Prediction


class RemaskPolicy(CheckedBlockPolicy):
    """Targeted remasking.

    Args:
        threshold: The confidence above which a mask is committed, 0 to 1.
        remask_threshold: The probability below which a token is taken back, 0 to 1.
        per_position: How often a position may be taken back, at least 0.
        share: The largest share of the committed tokens of the window that a step takes back, 0 to 1.
        max_post_steps: The most steps that a window has without a mask, at least 0.
        tokens_per_step: The positions that a step commits at least, 1 or more.

    Raises:
        ValueError: A number is out of range.
    """

    name = "remask"
    needs = frozenset({"logits"})

    def __init__(
        self,
        threshold: float = 0.95,
        remask_threshold: float = 0.1,
        per_position: int = 3,
        share: float = 0.25,
        max_post_steps: int = 16,
        tokens_per_step: int = 1,
    ) -> None:
        super().__init__(threshold, max_post_steps, tokens_per_step)
        self.remask_threshold = check_probability("remask_threshold", remask_threshold)
        self.per_position = check_at_least(0, "per_position", per_position)
        self.share = check_probability("share", share)

    def revise(
        self, prediction: Prediction, standing: Tensor, state: DecodeState, memory: Checked
    ) -> tuple[Tensor, Tensor]:
        probability = torch.ones_like(prediction.confidence)
        for part in prediction.logits_parts():
            now = part.logits.log_softmax(-1).gather(1, part.of(state.canvas)[:, None])[:, 0].exp().float()
            probability[part.rows, part.positions] = torch.where(part.of(standing), now, 1.0)
        improbable = standing & (probability < self.remask_threshold) & (memory.times_taken_back < self.per_position)
        most = (self.share * standing.sum(1).double()).long().clamp_min(1)
        return torch.zeros_like(standing), most_confident(-probability, improbable, most)
