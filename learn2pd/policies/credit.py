"""CreditDecoding (arXiv 2510.06133): tokens that were proposed again and again become more certain.

The rule: every masked position i of the window has a credit C(i, v) for every token v, 0 at first. In every step the
credits of the position decay, and its most probable token v* with probability p receives credit,

    C(i, v) <- decay * C(i, v),    C(i, v*) <- C(i, v*) + p ** boost.

The proposal and its confidence then come from the fused logits

    logits(i, v) + weight * log(1 + C(i, v)),

so that a proposal need not be the most probable token of the model. The policy commits every eligible position with

    fused confidence >= min(threshold, the largest fused confidence - 0.00001).

The credits are a float32 tensor of canvas x vocabulary for each row: 130 MB for 256 tokens of LLaDA's vocabulary.

Deviation from the authors' code: none that changes a token. In their code a position whose most probable token is the
mask token is no candidate; here the mask token is never proposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.errors import check_not_negative, check_probability
from learn2pd.roles import Policy
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction, RowMemory

NEAR_TIE = 1e-5  # positions this near to the best one are committed with it


@dataclass(frozen=True)
class Credit(RowMemory):
    """The credits of every row.

    Attributes:
        credit: [B, G, V] float32.
    """

    credit: Tensor


class CreditPolicy(Policy):
    """CreditDecoding.

    Args:
        threshold: The least fused confidence of a position that is committed, 0 to 1.
        weight: The weight of the credits in the fused logits, 0 or more. With 0 the rule is the threshold alone.
        boost: The power of the probability that is added as credit, 0 or more.
        decay: The share of a credit that is left in the next step, 0 to 1.

    Raises:
        ValueError: A number is out of range.
    """

    name = "credit"
    needs = frozenset({"logits"})

    def __init__(self, threshold: float = 0.9, weight: float = 0.7, boost: float = 0.2, decay: float = 0.8) -> None:
        self.threshold = check_probability("threshold", threshold)
        self.weight = check_not_negative("weight", weight)
        self.boost = check_not_negative("boost", boost)
        self.decay = check_probability("decay", decay)

    def start(self, state: DecodeState, spec: ModelSpec) -> Credit:
        return Credit(torch.zeros(*state.masked.shape, spec.vocab_size, device=state.masked.device))

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: Credit) -> Commit:
        credits = memory.credit.clone()
        tokens = prediction.tokens.clone()
        confidence = torch.zeros_like(prediction.confidence)
        for part in prediction.logits_parts():
            at = part.rows, part.positions
            asked = part.of(eligible)
            logits = part.logits[:, : credits.shape[2]].float()
            probability, token = logits.softmax(-1).max(-1, keepdim=True)
            credit = (credits[at] * self.decay).scatter_add(1, token, probability**self.boost)
            fused = logits + self.weight * credit.log1p()
            proposed = part.draw(fused)
            sure = fused.softmax(-1).gather(1, proposed[:, None])[:, 0]
            tokens[at] = torch.where(asked, proposed, tokens[at])
            confidence[at] = torch.where(asked, sure, 0.0)
            credits[at] = torch.where(asked[:, None], credit, credits[at])
        bar = (confidence.amax(1, keepdim=True) - NEAR_TIE).clamp_max(self.threshold)
        return Commit(eligible & (confidence >= bar), tokens=tokens, memory=Credit(credits))
