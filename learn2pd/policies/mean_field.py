"""Mean-field parallel decoding (arXiv 2606.15805): proposals that may stand for the same word hold each other back.

The rule: position i has the confidence c_i and the distribution p_i. Two positions overlap by

    O(i, j) = 1 - JS(p_i, p_j) / log 2,

where JS is the Jensen-Shannon divergence, so that equal distributions overlap by 1 and disjoint ones by 0. The policy
relaxes the decision to commit a position to a number q_i from 0 to 1, begins with

    q_i = sigmoid(logit(c_i) - logit(threshold)),

and repeats `rounds` times, for all positions together,

    q_i <- sigmoid(logit(c_i) - logit(threshold) - interaction * sum over j != i of O(i, j) (1 - c_j) q_j).

It commits every eligible position with q_i > 1/2. With `interaction=0` this is the threshold rule with a strict
comparison. An overlap with a certain position costs nothing, so that equal certain tokens do not hold each other back.

The overlap is computed from the `top` most probable tokens of each position; what is left of a distribution counts as
disjoint from every other one.

Deviations: neither the authors' code nor the coefficients of the paper were at hand. The pairwise overlap by the
Jensen-Shannon divergence and the fixed point are the paper's. The unary term, the weight 1 - c_j and the defaults are
this project's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learn2pd.errors import check_at_least, check_not_negative
from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, Prediction

CLOSEST = 1e-6  # a confidence counts as at most 1 less this, so that its logit is finite


class MeanFieldPolicy(Policy):
    """Mean-field parallel decoding.

    Args:
        threshold: The confidence above which a position that overlaps with no other one is committed, between 0 and 1.
        interaction: The strength with which overlapping positions hold each other back, 0 or more.
        rounds: The rounds of the fixed point, at least 1.
        top: The most probable tokens of which the overlap is computed, at least 1.

    Raises:
        ValueError: A number is out of range.
    """

    name = "mean_field"
    needs = frozenset({"logits"})

    def __init__(self, threshold: float = 0.8, interaction: float = 5.0, rounds: int = 10, top: int = 16) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold={threshold}: expected a number between 0 and 1")
        self.threshold = threshold
        self.interaction = check_not_negative("interaction", interaction)
        self.rounds = check_at_least(1, "rounds", rounds)
        self.top = check_at_least(1, "top", top)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: None) -> Commit:
        width = state.window.width
        # [B, G] long, the place among the eligible positions of the row; the others share a place behind them
        place = torch.where(eligible, eligible.cumsum(1) - 1, width)
        probability = torch.zeros(0, device=eligible.device)
        for part in prediction.logits_parts():
            if not len(probability):
                probability = part.logits.new_zeros(len(eligible), width + 1, part.logits.shape[1])
            probability[part.rows, part.of(place)] = part.logits.softmax(-1)
        confidence = prediction.confidence.new_zeros(len(eligible), width + 1).scatter_(1, place, prediction.confidence)
        probability, confidence = probability[:, :width], confidence[:, :width]
        commit = self.decide(confidence, overlap(probability, min(self.top, probability.shape[2])).float())
        return Commit(eligible & commit.gather(1, place.clamp_max(width - 1)))

    def decide(self, confidence: Tensor, overlaps: Tensor) -> Tensor:
        """Find the fixed point.

        Args:
            confidence: [B, W] float, 0 for positions that do not exist.
            overlaps: [B, W, W] float.

        Returns:
            [B, W] bool, True where q is above 1/2.
        """
        unary = confidence.clamp(CLOSEST, 1 - CLOSEST).logit() - math.log(self.threshold / (1 - self.threshold))
        exists = confidence > 0
        weight = self.interaction * overlaps * ((1 - confidence) * exists)[:, None]
        weight = weight * ~torch.eye(weight.shape[1], dtype=torch.bool, device=weight.device)
        q = unary.sigmoid()
        for _ in range(self.rounds):
            q = (unary - (weight @ q[..., None])[..., 0]).sigmoid()
        return q > 0.5


def overlap(probability: Tensor, top: int) -> Tensor:
    """Compute how much the distributions of two positions overlap.

    Args:
        probability: [B, W, V] float.
        top: The most probable tokens that count.

    Returns:
        [B, W, W] float, 1 for equal distributions and 0 for disjoint ones.
    """
    rows, width, _ = probability.shape
    own, token = probability.topk(top, dim=-1)  # [B, W, K]
    index = token.flatten(1)[:, None].expand(rows, width, -1)
    other = probability.gather(2, index).view(rows, width, width, top)  # entry (i, j, k) is p_i of j's k-th token
    own = own[:, None]
    # log 2 less the divergence of p_j from the mixture of p_i and p_j, over j's tokens
    shared = (own * (1 + other / own.clamp_min(torch.finfo(own.dtype).tiny)).log()).sum(-1)
    return (shared + shared.transpose(1, 2)) / (2 * math.log(2))
