"""Where a row's answer ends, decided after each commit."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from learn2pd.types import Commit, DecodeState, Prediction


class StopRule(Protocol):
    name: str
    cuts: bool  # True: closed positions leave the sequence; False: they stay in it as end-of-text
    looks_ahead: bool  # True: proposals are wanted at every masked position, not only in the window

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        """Where each row ends, [B] long, never later than `state.end`; `state` is the one before the commit."""


def is_among(tokens: Tensor, ids: tuple[int, ...]) -> Tensor:
    """[...] bool: which tokens are one of a few ids."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for token in ids:  # compared one by one: building a tensor of the ids would wait for the device
        found = found | (tokens == token)
    return found


class NoStop:
    """Decode the whole canvas."""

    name, cuts, looks_ahead = "none", False, False

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        return state.end


class EotStop:
    """End after the first end-of-text that was committed with at least `floor` confidence; masks before it are still decoded.

    Nothing can be lost: whatever follows the first end-of-text of the canvas is never part of an answer. Later positions become
    end-of-text and stay in the sequence, as in the padded canvases a LLaDA is trained on.

    Args:
        floor: confidence, 0 to 1.
    """

    name, cuts, looks_ahead = "eot", False, False

    def __init__(self, floor: float = 0.5) -> None:
        if not 0 <= floor <= 1:
            raise ValueError(f"stop.floor={floor}: expected a confidence from 0 to 1")
        self.floor = floor

    def ends(self, state: DecodeState, prediction: Prediction, commit: Commit, eot_ids: tuple[int, ...]) -> Tensor:
        if commit.tokens is None:
            found = commit.mask & is_among(prediction.tokens, eot_ids) & (prediction.confidence >= self.floor)
        else:  # tokens that are not proposals have no confidence: who wrote them knew them
            found = commit.mask & is_among(commit.tokens, eot_ids)
        return torch.minimum(state.end, _after_first(found))


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
        end = torch.where(accepted.any(1), _after_first(accepted), surest)
        return torch.minimum(state.end, end)


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


def _after_first(found: Tensor) -> Tensor:
    """[B] long: one past the first True of [B, G], or G where there is none."""
    return torch.where(found.any(1), found.int().argmax(1) + 1, found.shape[1])
