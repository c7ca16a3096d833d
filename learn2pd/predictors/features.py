"""What a predictor network may see of a window: a few numbers a position, the same while recording, training and decoding.

`observe` describes a step over the whole canvas, `cut` takes out each row's window, `stack` picks the channels. A network that was trained
on some channels gets exactly those at inference, whatever the block length, window or schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.tensors import is_among, window_view
from learn2pd.types import DecodeState, Prediction, Window

LOG_ODDS_LIMIT = 12.0  # float32 confidences next to 1 carry no more
VALUES = ("confidence", "margin", "entropy")  # of a proposal
OF_PROPOSALS = (*VALUES, "unchanged")
OBSERVED = ("proposal", *VALUES, "masked", "unchanged", "end_of_text", "delimiter")
DECIDED = -1  # in place of a proposal where there is nothing to decide


@dataclass(frozen=True)
class View:
    """A window of each row, [R, W] each; past the window's end everything but `proposal` is zero."""

    proposal: Tensor  # long, `DECIDED` where the position is not masked or not inside the window
    confidence: Tensor  # float32
    margin: Tensor  # float32
    entropy: Tensor  # float32, nats
    masked: Tensor  # bool, still to decode
    unchanged: Tensor  # bool, the proposal was the same in the step before
    end_of_text: Tensor  # bool, of the proposal, or of the token where it is decided
    delimiter: Tensor  # bool, likewise
    valid: Tensor  # bool, inside the window


@dataclass(frozen=True)
class Seen:
    """What `observe` must remember of a step: the proposals in its window, however far ahead the canvas was scored."""

    tokens: Tensor  # [B, G] long
    valid: Tensor  # [B, G] bool

    @classmethod
    def of(cls, state: DecodeState, prediction: Prediction) -> Seen:
        return cls(prediction.tokens, prediction.valid & state.window.mask(state.gen_length))


def observe(
    state: DecodeState, prediction: Prediction, before: Seen | None, eot_ids: tuple[int, ...], delimiter_ids: tuple[int, ...]
) -> dict[str, Tensor]:
    """The columns `OBSERVED`, [B, G] each, of a step before its commit.

    Args:
        before: proposals of the last step, None in the first.
        delimiter_ids: tokens that end a step of an answer; may be empty.
    """
    zeros = torch.zeros_like(prediction.confidence)
    shown = torch.where(state.masked, prediction.tokens, state.canvas)
    known = ~state.masked | prediction.valid
    same = torch.zeros_like(state.masked) if before is None else before.valid & prediction.valid & (before.tokens == prediction.tokens)
    return {
        "proposal": prediction.tokens,
        "confidence": prediction.confidence,
        "margin": prediction.extras.get("margin", zeros),
        "entropy": prediction.extras.get("entropy", zeros),
        "masked": state.masked,
        "unchanged": same,
        "end_of_text": known & is_among(shown, eot_ids),
        "delimiter": known & is_among(shown, delimiter_ids),
    }


def cut(columns: Mapping[str, Tensor], window: Window, width: int, committed: bool) -> View:
    """Each row's window of the columns `OBSERVED`.

    Args:
        columns: [R, G] each.
        width: W, at least the longest window.
        committed: keep what is known of proposals at committed positions; else it is zero, as where they are not scored.
    """
    found = {name: window_view(columns[name], window, width) for name in OBSERVED}
    if not committed:
        found |= {name: found[name].masked_fill(~found["masked"], 0) for name in OF_PROPOSALS}
    found["proposal"] = found["proposal"].long().masked_fill(~found["masked"], DECIDED)
    position = window.start[:, None] + torch.arange(width, device=window.start.device)
    return View(valid=position < window.stop[:, None], **found)


def stack(view: View, names: Sequence[str]) -> Tensor:
    """[R, W, C] float32: the named channels, zero past the window's end."""
    columns = torch.stack([CHANNELS[name](view).float() for name in names], dim=-1)
    return columns.masked_fill(~view.valid[..., None], 0)


def _log_odds(view: View) -> Tensor:
    return (view.confidence.logit(1e-7).clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT)).masked_fill(view.confidence == 0, 0)


def _position(view: View) -> Tensor:
    length = view.valid.sum(1, keepdim=True).clamp_min(1)
    return torch.arange(view.valid.shape[1], device=view.valid.device) / length


def _decoded(view: View) -> Tensor:
    length = view.valid.sum(1, keepdim=True).clamp_min(1)
    return ((view.valid & ~view.masked).sum(1, keepdim=True) / length).expand_as(view.confidence)


CHANNELS: dict[str, Callable[[View], Tensor]] = {
    "confidence": lambda view: view.confidence,
    "log_odds": _log_odds,  # of the confidence: 0.99 and 0.9999 lie far apart
    "margin": lambda view: view.margin,
    "entropy": lambda view: view.entropy,
    "masked": lambda view: view.masked,
    "valid": lambda view: view.valid,
    "position": _position,  # in the window, 0 to 1
    "decoded": _decoded,  # share of the window that is committed
    "unchanged": lambda view: view.unchanged,
    "end_of_text": lambda view: view.end_of_text,
    "delimiter": lambda view: view.delimiter,
}
EXTRAS_OF_CHANNELS = {"margin": "margin", "entropy": "entropy"}  # what a channel needs of the prediction
