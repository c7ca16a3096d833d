"""APD's stop rule (arXiv 2506.00413)."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.tensors import is_among
from learn2pd.types import Commit, DecodeState, Prediction


class AnywhereStop:
    """APD's rule (arXiv 2506.00413): as soon as an end-of-text is anywhere in the canvas, the sequence is cut before the first mask behind it.

    For policies that commit from left to right nothing is masked before it, so the row is done; with others the masks before it are decoded.
    """

    name, cuts, looks_ahead = "anywhere", True, False

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        written = prediction.tokens if commit.tokens is None else commit.tokens
        ended = (commit.mask & is_among(written, eot_ids)).cumsum(1) > 0
        left = state.masked & ~commit.mask & ended
        return torch.where(left.any(1), left.int().argmax(1), state.end)
