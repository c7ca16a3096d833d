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
from torch.nn import functional

from learn2pd.tensors import is_among, window_positions
from learn2pd.types import NOT_PROPOSED, DecodeState, Prediction, Window

LOG_ODDS_LIMIT = 12.0  # float32 confidences near 1 cannot express larger log-odds
VALUES = ("confidence", "margin", "entropy")  # numbers that describe a proposal
OF_PROPOSALS = (*VALUES, "unchanged")
OBSERVED = ("proposal", *VALUES, "masked", "unchanged", "end_of_text", "delimiter")
STANDING = ("leave_one_out", "leave_one_out_rank", "leave_one_out_entropy")  # values of committed tokens
COMMITTED = (*STANDING, "committed_with", "age")  # numbers that describe a committed token
EXTRAS = ("margin", "entropy", *STANDING)  # the values for which a component must ask in its attribute `needs`
WINDOW_COLUMNS = ("hidden", "top_ids", "top_shares")  # columns that have several values at a position
HIDDEN = "hidden_"  # begins the names of the channels of hidden states, which end in a number
DECIDED = -1  # stands in place of a proposal at positions that are not masked


@dataclass(frozen=True)
class View:
    """The window of each row. Every tensor is [R, W]; behind the window's end all but `proposal` are zero.

    Attributes:
        proposal: long, the proposed token, `DECIDED` where the position is not masked or not inside the window. Where
            the committed tokens are described too, it is the token itself at a committed position.
        confidence: float32, of the proposal.
        margin: float32, of the proposal; None where the prediction has no margin.
        entropy: float32, in nats; None where the prediction has no entropy.
        masked: bool, the positions that are still to decode.
        unchanged: bool, True where the step before proposed the same token.
        end_of_text: bool, True where the proposal, or the token of a decided position, ends an answer.
        delimiter: bool, True where the proposal, or the token of a decided position, ends a step of an answer.
        valid: bool, the positions inside the window.
        leave_one_out: float32, the probability of a committed token given all tokens but itself, 0 elsewhere; None, as
            the next four, where the committed tokens are not described.
        leave_one_out_rank: the number of tokens that are more probable than the committed one.
        leave_one_out_entropy: float32, in nats, of the distribution given all tokens but the committed one.
        committed_with: float32, the confidence with which the token was committed.
        age: the number of steps since the token was committed, 0 at positions that no earlier step committed.
        hidden: [R, W, K] float32, the projected hidden states of masked positions; None where nobody asked for them.
        top_ids: [R, W, 4] long, the most probable tokens of masked positions; None where nobody asked for them.
        top_shares: [R, W, 4] float32, the probabilities of these tokens, 0 at other positions.
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
    leave_one_out: Tensor | None = None
    leave_one_out_rank: Tensor | None = None
    leave_one_out_entropy: Tensor | None = None
    committed_with: Tensor | None = None
    age: Tensor | None = None
    hidden: Tensor | None = None
    top_ids: Tensor | None = None
    top_shares: Tensor | None = None

    @property
    def overlap(self) -> Tensor | None:
        """How much the distributions of two positions have in common, [R, W, W] float32; None without `top_ids`.

        It is the sum over the most probable tokens of both positions of the smaller of the two probabilities.
        """
        if self.top_ids is None or self.top_shares is None:
            return None
        ids, shares = self.top_ids, self.top_shares
        common = torch.zeros(*ids.shape[:2], ids.shape[1], device=ids.device)
        for one in range(ids.shape[2]):
            for other in range(ids.shape[2]):
                same = ids[:, :, None, one] == ids[:, None, :, other]
                common = common + same * torch.minimum(shares[:, :, None, one], shares[:, None, :, other])
        return common


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
        **{name: prediction.extras[name] for name in ("margin", "entropy") if name in prediction.extras},
    )


def observe_committed(state: DecodeState, prediction: Prediction) -> dict[str, Tensor]:
    """Describe the committed tokens of a step of the loop.

    Args:
        state: The state before the commit.
        prediction: The proposals of the step, with the extras `STANDING`.

    Returns:
        The columns `COMMITTED`, and `token`, which is the token of a committed position and the proposal of a masked
        one, [B, G] each.
    """
    earlier = state.decided & (state.committed_at >= 0)
    return {
        **{name: prediction.extra(name) for name in STANDING},
        "committed_with": state.committed_with * earlier,
        "age": (state.step[:, None] - state.committed_at) * earlier,
        "token": torch.where(state.masked, prediction.tokens, state.canvas).masked_fill(
            state.masked & ~prediction.valid, DECIDED
        ),
    }


def cut(columns: Mapping[str, Tensor], window: Window, width: int, committed: bool) -> View:
    """Cut each row's window out of the columns `OBSERVED`, and out of those that `observe_committed` adds.

    Args:
        columns: The columns by name, [R, G] each. Without those of committed tokens, the windows do not describe them.
            The columns `WINDOW_COLUMNS` may be among them, which are [R, W, K] and lie in the window already.
        window: The window of each row.
        width: W, at least the length of the longest window.
        committed: True keeps the values of proposals at committed positions. False sets them to zero, the same as for
            committed positions that were not scored.

    Returns:
        The windows.
    """
    position, valid = window_positions(window, width)
    position = position.clamp_max(columns["masked"].shape[1] - 1)
    names = (*OBSERVED, *COMMITTED, "token")
    parts = {name: _only(columns[name].gather(1, position), valid) for name in names if name in columns}
    if not committed:
        parts |= {name: _only(parts[name], parts["masked"]) for name in OF_PROPOSALS if name in parts}
    shown = valid if "token" in parts else parts["masked"]
    parts["proposal"] = parts.pop("token", parts["proposal"]).long().masked_fill(~shown, DECIDED)
    for name in WINDOW_COLUMNS:
        if name in columns:
            values = columns[name].long() if name == "top_ids" else columns[name].float()
            parts[name] = _only(_as_wide(values, width), parts["masked"][..., None])
    absent = {name: None for name in ("margin", "entropy") if name not in parts}
    return View(valid=valid, **parts, **absent)  # type: ignore[arg-type]


def _as_wide(values: Tensor, width: int) -> Tensor:
    """Give values [R, any, K] another number of positions, with zeros at new ones."""
    return functional.pad(values, (0, 0, 0, width - values.shape[1]))


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
    if name.startswith(HIDDEN):
        values = None if view.hidden is None else view.hidden[..., int(name.removeprefix(HIDDEN))]
    else:
        values = CHANNELS[name](view)
    if values is None:
        raise ValueError(
            f"the channel {name!r} is not in this prediction: "
            "the component that reads it must name it in its attribute 'needs'"
        )
    return values.float()


def _log_odds(probability: Tensor | None) -> Tensor | None:
    """Return the log-odds of a probability. They are 0 where it is 0, which stands for none."""
    if probability is None:
        return None
    return probability.logit(1e-7).clamp(-LOG_ODDS_LIMIT, LOG_ODDS_LIMIT).masked_fill(probability == 0, 0)


def _logarithm(count: Tensor | None) -> Tensor | None:
    return None if count is None else count.float().log1p()


def _newer(view: View) -> Tensor | None:
    """Return the share of the window that was committed after each committed position."""
    if view.age is None:
        return None
    age = view.age.float()
    later = (age[:, None, :] < age[:, :, None]) & (age > 0)[:, None, :]  # [R, W, W]
    return later.sum(2) / view.valid.sum(1, keepdim=True).clamp_min(1)


def _position(view: View) -> Tensor:
    length = view.valid.sum(1, keepdim=True).clamp_min(1)
    return torch.arange(view.valid.shape[1], device=view.valid.device) / length


def _decoded(view: View) -> Tensor:
    length = view.valid.sum(1, keepdim=True).clamp_min(1)
    return ((view.valid & ~view.masked).sum(1, keepdim=True) / length).expand_as(view.confidence)


CHANNELS: dict[str, Callable[[View], Tensor | None]] = {
    "confidence": lambda view: view.confidence,
    "log_odds": lambda view: _log_odds(view.confidence),  # of the confidence, so that 0.99 and 0.9999 lie far apart
    "margin": lambda view: view.margin,
    "entropy": lambda view: view.entropy,
    "masked": lambda view: view.masked,
    "valid": lambda view: view.valid,
    "position": _position,  # the place in the window, 0 to 1
    "decoded": _decoded,  # the share of the window that is committed
    "unchanged": lambda view: view.unchanged,
    "end_of_text": lambda view: view.end_of_text,
    "delimiter": lambda view: view.delimiter,
    "leave_one_out": lambda view: _log_odds(view.leave_one_out),
    "leave_one_out_rank": lambda view: _logarithm(view.leave_one_out_rank),
    "leave_one_out_entropy": lambda view: view.leave_one_out_entropy,
    "committed_with": lambda view: _log_odds(view.committed_with),
    "age": lambda view: _logarithm(view.age),
    "newer": _newer,  # the share of the window that was committed since
}
