"""EoTP as its authors run it (Learn2PD, arXiv 2509.25188)."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.tensors import after_first, is_among
from learn2pd.types import Commit, DecodeState, Prediction


class EotpPaperStop:
    """EoTP as its authors run it (Learn2PD, arXiv 2509.25188, section 3.3 and `generate_l2p_eot`): the sequence is cut

    (i) after the leftmost end-of-text that the filter accepted in this step; else
    (ii) after the most confident end-of-text proposal of any masked position, at whatever confidence.

    Rule (ii) has no floor: one stray proposal in a far block shortens the answer for good. Kept for comparison. A cache that keeps
    proposals to the window keeps rule (ii) to it too, as in the authors' cached code.

    Args:
        accepted: False leaves rule (i) out, which is the authors' `generate_predict_eot`.
    """

    name, cuts, looks_ahead = "eotp_paper", True, True

    def __init__(self, accepted: bool = True) -> None:
        self.accepted = accepted

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        proposed = prediction.valid & state.masked & is_among(prediction.tokens, eot_ids)
        accepted = proposed & commit.mask & self.accepted
        if commit.forced is not None:
            accepted = accepted & ~commit.forced
        confidence = prediction.confidence.masked_fill(~proposed, -1.0)
        surest = torch.where(proposed.any(1), confidence.argmax(1) + 1, proposed.shape[1])
        end = torch.where(accepted.any(1), after_first(accepted), surest)
        return torch.minimum(state.end, end)
