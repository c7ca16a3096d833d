"""EoTP as its authors run it (Learn2PD, arXiv 2509.25188, section 3.3 and `generate_l2p_eot`). The sequence is cut

(i) after the leftmost end-of-text that the filter accepted in this step; else
(ii) after the most confident end-of-text proposal of any masked position, at whatever confidence.

Rule (ii) has no floor: one stray proposal in a far block shortens the answer for good. The rule is here for comparison. A cache that keeps
proposals to the window keeps rule (ii) to it too, as in the authors' cached code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.roles import StopRule
from learn2pd.stops.eot import EotIds
from learn2pd.tensors import after_first, is_among
from learn2pd.types import Commit, DecodeState, ModelSpec, Prediction


class EotpPaperStop(StopRule):
    """The authors' rule.

    Args:
        accepted: False leaves rule (i) out, which is the authors' `generate_predict_eot`.
    """

    name = "eotp_paper"
    cuts = True
    looks_ahead = True

    def __init__(self, accepted: bool = True) -> None:
        self.accepted = accepted

    def start(self, state: DecodeState, spec: ModelSpec) -> EotIds:
        return EotIds(spec.eot_ids)

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, memory: EotIds) -> Tensor:
        proposed = prediction.valid & state.masked & is_among(prediction.tokens, memory.eot_ids)
        accepted = proposed & commit.mask & self.accepted
        if commit.forced is not None:
            accepted = accepted & ~commit.forced
        confidence = prediction.confidence.masked_fill(~proposed, -1.0)
        surest = torch.where(proposed.any(1), confidence.argmax(1) + 1, proposed.shape[1])
        end = torch.where(accepted.any(1), after_first(accepted), surest)
        return torch.minimum(state.end, end)
