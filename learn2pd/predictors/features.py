"""The features of a window: the few numbers at each position that a predictor network may see.

Recording, training, decoding and every export compute them by the same three functions. `features` describes a step
over the whole canvas from plain tensors, `cut` takes each row's window out of it, and `stack` selects the channels. A
network gets the channels on which it was trained, whatever the block length, the window or the scheduler.

In the shapes, R is the number of rows, G of canvas positions, W of positions of a window, C of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learn2pd.tensors import is_among, window_positions
from learn2pd.types import NOT_PROPOSED, DecodeState, Prediction, Window

LOG_ODDS_LIMIT = 12.0  # float32 confidences near 1 cannot express larger log-odds
VALUES = ("confidence", "margin", "entropy")  # numbers that describe a proposal
OF_PROPOSALS = (*VALUES, "unchanged")
OBSERVED = ("proposal", *VALUES, "masked", "unchanged", "end_of_text", "delimiter")
EXTRAS = ("margin", "entropy")  # the values for which a component must ask in its attribute `needs`
DECIDED = -1  # stands in place of a proposal at positions that are not masked


@dataclass(frozen=True)
class View:
    """The window of each row. Every tensor is [R, W]; behind the window's end all but `proposal` are zero.

    Attributes:
        proposal: long, the proposed token, `DECIDED` where the position is not masked or not inside the window.
        confidence: float32, of the proposal.
        margin: float32, of the proposal; None where the prediction has no margin.
        entropy: float32, in nats; None where the prediction has no entropy.
        masked: bool, the positions that are still to decode.
        unchanged: bool, True where the step before proposed the same token.
        end_of_text: bool, True where the proposal, or the token of a decided position, ends an answer.
        delimiter: bool, True where the proposal, or the token of a decided position, ends a step of an answer.
        valid: bool, the positions inside the window.
    """

    proposal: Tensor
    confidence: Tensor
    margin: Tensor | None
    entropy: Tensor | None
    masked: Tensor
    unchanged: Tensor
    end_of_text: Tensor
    delimiter: Tensor
    valid: Tensor


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
    """Compute the columns `OBSERVED` of a step before its commit. All tensors have one shape, such as [R, G].

    Args:
        tokens: long, the tokens of the canvas.
        masked: bool, the positions that are still to decode.
        proposals: long, the tokens that the model proposes.
        confidence: float32, of the proposals.
        valid: bool, the positions that have a proposal.
        previous: long, the proposals of the step before, `NOT_PROPOSED` where it made none.
        eot_ids: The tokens that end an answer.
        delimiter_ids: The tokens that end a step of an answer; the tuple may be empty.
        margin: float32, of the proposals; None where it was not computed, and then no channel may need it.
        entropy: float32, in nats; None as for `margin`.

    Returns:
        The columns by name.
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
    """Compute the `features` of a step of the loop.

    Args:
        state: The state before the commit.
        prediction: The proposals of the step.
        eot_ids: The tokens that end an answer.
        delimiter_ids: The tokens that end a step of an answer.

    Returns:
        The columns `OBSERVED` by name.
    """
    return features(
        tokens=state.canvas,
        masked=state.masked,
        proposals=prediction.tokens,
        confidence=prediction.confidence,
        valid=prediction.valid,
        previous=state.previous,
        eot_ids=eot_ids,
        delimiter_ids=delimiter_ids,
        **{name: prediction.extras[name] for name in EXTRAS if name in prediction.extras},
    )


def cut(columns: Mapping[str, Tensor], window: Window, width: int, committed: bool) -> View:
    """Cut each row's window out of the columns `OBSERVED`.

    Args:
        columns: The columns by name, [R, G] each.
        window: The window of each row.
        width: W, at least the length of the longest window.
        committed: True keeps the values of proposals at committed positions. False sets them to zero, the same as for
            committed positions that were not scored.

    Returns:
        The windows.
    """
    position, valid = window_positions(window, width)
    position = position.clamp_max(columns["masked"].shape[1] - 1)
    parts = {name: _only(columns[name].gather(1, position), valid) for name in OBSERVED if name in columns}
    if not committed:
        parts |= {name: _only(parts[name], parts["masked"]) for name in OF_PROPOSALS if name in parts}
    parts["proposal"] = parts["proposal"].long().masked_fill(~parts["masked"], DECIDED)
    absent = {name: None for name in EXTRAS if name not in parts}
    return View(valid=valid, **parts, **absent)  # type: ignore[arg-type]


def _only(values: Tensor, where: Tensor) -> Tensor:
    """Set the values at all other positions to zero."""
    # ONNX runtimes have no `masked_fill` of truth values
    return values & where if values.dtype == torch.bool else values.masked_fill(~where, 0)


def stack(view: View, names: Sequence[str]) -> Tensor:
    """Select channels of a window.

    Args:
        view: The windows.
        names: The names of the C channels.

    Returns:
        [R, W, C] float32, zero behind the window's end.

    Raises:
        ValueError: The prediction lacks the value of a channel.
    """
    columns = torch.stack([_channel(view, name) for name in names], dim=-1)
    return columns.masked_fill(~view.valid[..., None], 0)


def _channel(view: View, name: str) -> Tensor:
    """Return one channel, [R, W] float32.

    Raises:
        ValueError: The prediction lacks the value of the channel.
    """
    values = CHANNELS[name](view)
    if values is None:
        raise ValueError(
            f"the channel {name!r} is not in this prediction: "
            "the component that reads it must name it in its attribute 'needs'"
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
    "log_odds": _log_odds,  # of the confidence, so that 0.99 and 0.9999 lie far apart
    "margin": lambda view: view.margin,
    "entropy": lambda view: view.entropy,
    "masked": lambda view: view.masked,
    "valid": lambda view: view.valid,
    "position": _position,  # the place in the window, 0 to 1
    "decoded": _decoded,  # the share of the window that is committed
    "unchanged": lambda view: view.unchanged,
    "end_of_text": lambda view: view.end_of_text,
    "delimiter": lambda view: view.delimiter,
}
