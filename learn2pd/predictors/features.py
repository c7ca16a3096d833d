"""What a predictor network may see of a window: a few numbers a position, the same while recording, training, decoding and in every export.

`features` describes a step over the whole canvas from plain tensors, `cut` takes out each row's window, `stack` picks the channels. A network
that was trained on some channels gets exactly those at inference, whatever the block length, window or schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.tensors import is_among, window_view
from learn2pd.types import NOT_PROPOSED, DecodeState, Prediction, Window

LOG_ODDS_LIMIT = 12.0  # float32 confidences next to 1 carry no more
VALUES = ("confidence", "margin", "entropy")  # of a proposal
OF_PROPOSALS = (*VALUES, "unchanged")
OBSERVED = ("proposal", *VALUES, "masked", "unchanged", "end_of_text", "delimiter")
EXTRAS = ("margin", "entropy")  # the values that a component must ask for by its attribute `needs`
DECIDED = -1  # in place of a proposal where there is nothing to decide


@dataclass(frozen=True)
class View:
    """A window of each row, [R, W] each; past the window's end everything but `proposal` is zero. None: the prediction does not have it."""

    proposal: Tensor  # long, `DECIDED` where the position is not masked or not inside the window
    confidence: Tensor  # float32
    margin: Tensor | None  # float32
    entropy: Tensor | None  # float32, nats
    masked: Tensor  # bool, still to decode
    unchanged: Tensor  # bool, the proposal was the same in the step before
    end_of_text: Tensor  # bool, of the proposal, or of the token where it is decided
    delimiter: Tensor  # bool, likewise
    valid: Tensor  # bool, inside the window


def features(
    *,
    tokens: Tensor,
    masked: Tensor,
    proposals: Tensor,
    confidence: Tensor,
    valid: Tensor,
    previous: Tensor,
    eot_ids: tuple[int, ...],
    delimiter_ids: tuple[int, ...],
    margin: Tensor | None = None,
    entropy: Tensor | None = None,
) -> dict[str, Tensor]:
    """The columns `OBSERVED` of a step before its commit, out of plain tensors of one shape, such as [B, G].

    Args:
        tokens: long, what stands in the canvas.
        masked: bool, still to decode.
        proposals: long, what the model proposes.
        confidence: float32, of the proposals.
        valid: bool, positions that have a proposal.
        previous: long, the proposals of the step before, `NOT_PROPOSED` where it made none.
        eot_ids: tokens that end an answer.
        delimiter_ids: tokens that end a step of an answer; may be empty.
        margin, entropy: float32, of the proposals; None where they were not computed, and no channel may need them then.
    """
    shown = torch.where(masked, proposals, tokens)
    known = ~masked | valid
    columns = {
        "proposal": proposals,
        "confidence": confidence,
        "margin": margin,
        "entropy": entropy,
        "masked": masked,
        "unchanged": valid & (previous != NOT_PROPOSED) & (previous == proposals),
        "end_of_text": known & is_among(shown, eot_ids),
        "delimiter": known & is_among(shown, delimiter_ids),
    }
    return {name: values for name, values in columns.items() if values is not None}


def observe(
    state: DecodeState, prediction: Prediction, eot_ids: tuple[int, ...], delimiter_ids: tuple[int, ...]
) -> dict[str, Tensor]:
    """`features` of a step of the loop."""
    return features(
        tokens=state.canvas, masked=state.masked, proposals=prediction.tokens, confidence=prediction.confidence, valid=prediction.valid,
        previous=state.previous, eot_ids=eot_ids, delimiter_ids=delimiter_ids,
        **{name: prediction.extras[name] for name in EXTRAS if name in prediction.extras},
    )  # fmt: skip


def cut(columns: Mapping[str, Tensor], window: Window, width: int, committed: bool) -> View:
    """Each row's window of the columns `OBSERVED`.

    Args:
        columns: [R, G] each.
        width: W, at least the longest window.
        committed: keep what is known of proposals at committed positions; else it is zero, as where they are not scored.
    """
    parts = {name: window_view(columns[name], window, width) for name in OBSERVED if name in columns}
    if not committed:
        parts |= {name: parts[name].masked_fill(~parts["masked"], 0) for name in OF_PROPOSALS if name in parts}
    parts["proposal"] = parts["proposal"].long().masked_fill(~parts["masked"], DECIDED)
    position = window.start[:, None] + torch.arange(width, device=window.start.device)
    absent = {name: None for name in EXTRAS if name not in parts}
    return View(valid=position < window.stop[:, None], **parts, **absent)  # type: ignore[arg-type]


def stack(view: View, names: Sequence[str]) -> Tensor:
    """[R, W, C] float32: the named channels, zero past the window's end.

    Raises:
        ValueError: the prediction lacks what a channel shows.
    """
    columns = torch.stack([_channel(view, name) for name in names], dim=-1)
    return columns.masked_fill(~view.valid[..., None], 0)


def _channel(view: View, name: str) -> Tensor:
    """[R, W] float32.

    Raises:
        ValueError: the prediction does not have what the channel shows.
    """
    values = CHANNELS[name](view)
    if values is None:
        raise ValueError(
            f"the channel {name!r} is not in this prediction: the component that reads it must name it in its attribute 'needs'"
        )
    return values.float()


def _log_odds(view: View) -> Tensor:
    return (view.confidence.logit(1e-7).clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT)).masked_fill(view.confidence == 0, 0)


def _position(view: View) -> Tensor:
    length = view.valid.sum(1, keepdim=True).clamp_min(1)
    return torch.arange(view.valid.shape[1], device=view.valid.device) / length


def _decoded(view: View) -> Tensor:
    length = view.valid.sum(1, keepdim=True).clamp_min(1)
    return ((view.valid & ~view.masked).sum(1, keepdim=True) / length).expand_as(view.confidence)


CHANNELS: dict[str, Callable[[View], Tensor | None]] = {
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
