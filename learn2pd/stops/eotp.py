"""EoTP as its authors run it (Learn2PD, arXiv 2509.25188, section 3.3 and their function `generate_l2p_eot`).

The rule: after each step the sequence is cut

(i) behind the leftmost end-of-text that the policy's own rule accepted in this step; or, where it accepted none,
(ii) behind the most confident end-of-text among the proposals of all masked positions, whatever its confidence.

Rule (ii) has no least confidence, so that one stray proposal in a far block shortens the answer for good. This project
keeps the rule for comparisons. With a cache that scores the window alone, rule (ii) sees the proposals of the window
alone, as in the authors' code with a cache.

Deviation from the authors' code: their code cuts a whole batch at once, so that their batch must be 1. Here every row
is cut alone, and an end-of-text before a token that the caller gave does not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.roles import StopRule
from learn2pd.tensors import after_first, may_end
from learn2pd.types import Commit, DecodeState, Prediction


class EotpPaperStop(StopRule):
    """The authors' rule.

    Args:
        accepted: False leaves out rule (i), as the authors' function `generate_predict_eot` does.
    """

    name = "eotp_paper"
    cuts = True
    looks_ahead = True

    def __init__(self, accepted: bool = True) -> None:
        self.accepted = accepted

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: None) -> Tensor:
        proposed = prediction.valid & state.masked & may_end(state, prediction.tokens)
        accepted = proposed & commit.mask & self.accepted
        if commit.forced is not None:
            accepted = accepted & ~commit.forced
        confidence = prediction.confidence.masked_fill(~proposed, -1.0)
        surest = torch.where(proposed.any(1), confidence.argmax(1) + 1, proposed.shape[1])
        end = torch.where(accepted.any(1), after_first(accepted), surest)
        return torch.minimum(state.end, end)
