"""The networks of the predictors: the paper's MLP, and a convolution and a transformer for windows of any length.

Every network maps channels [R, W, C] to logits [R, W], one for each position, where R is the number of rows, W of
positions of the window, C of channels. A network holds its channels, its sizes and the normalisation of its inputs.
Every `forward` takes the window as predictors/features.py makes it: inputs [R, W, C] float32, valid [R, W] bool and
proposal [R, W] long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.predictors.features import CHANNELS, DECIDED, HIDDEN, View, stack

DEFAULT_CHANNELS = (
    "log_odds",
    "margin",
    "entropy",
    "masked",
    "valid",
    "position",
    "decoded",
    "unchanged",
    "end_of_text",
    "delimiter",
)
REACH = 32  # tokens; the transformer treats all larger distances as this one
SAME_SCALE = 10.0  # lets a few hundred steps of AdamW make a head attend to equal proposals alone


class PredictorNetwork(nn.Module):
    """The base class of the predictor networks.

    Attributes:
        channels: The names of the inputs in `CHANNELS`, in order.
        width: The only window length, in tokens, with which the network works; None stands for any length.
        sees_committed: True asks for the confidence of proposals at committed positions too.
        hidden_states: K, the numbers that it sees of the model's hidden state at every position; 0 where it sees none.
        overlap: True lets it see how much the distributions of two positions have in common.
        adds_surest: True makes the policy commit the most confident position in every step, even where it accepts
            others. This is the paper's rule.
    """

    channels: tuple[str, ...]
    width: int | None = None
    sees_committed = False
    adds_surest = False
    hidden_states: int = 0
    overlap: bool = False

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON values."""
        raise NotImplementedError

    def probability(self, view: View) -> Tensor:
        """Compute the probability of "yes" at every position of a window.

        Args:
            view: The windows.

        Returns:
            [R, W] float32.
        """
        more = (view.overlap,) if self.overlap else ()
        logits: Tensor = self(stack(view, self.channels), view.valid, view.proposal, *more)
        return logits.sigmoid()


class MLP(PredictorNetwork):
    """The paper's filter (Learn2PD, arXiv 2509.25188): Linear(W, H), ReLU, Linear(H, W) on the confidences of a block.

    It has 2,112 parameters for W = H = 32. It cannot distinguish a committed position from a certain proposal, and it
    works with one block length only.

    Args:
        width: W, the block length in tokens.
        hidden: H, the hidden units.
    """

    channels = ("confidence",)
    sees_committed = True
    adds_surest = True

    def __init__(self, width: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.width = width
        self.hidden = hidden
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def options(self) -> dict[str, Any]:
        return {"width": self.width, "hidden": self.hidden}

    def forward(self, inputs: Tensor, valid: Tensor, proposal: Tensor) -> Tensor:
        """Compute the logits [R, W]."""
        return self.linear2(torch.relu(self.linear1(inputs[..., 0])))


class LengthFree(PredictorNetwork):
    """The base class of the networks for windows of any length.

    The network normalises its channels by their mean and deviation over the training positions. Both are buffers, and
    are saved with the weights.

    Args:
        channels: Names in `CHANNELS`, at least one.
        width: The features at each position.
        hidden_states: K, the numbers that are kept of a hidden state of the model; 0 shows none.
        model_width: The features of such a hidden state.

    Raises:
        ValueError: A channel is unknown, or none is given, or more numbers are kept than there are.
    """

    mean: Tensor
    deviation: Tensor
    hidden_map: Tensor  # [model_width, K], where hidden states are shown

    def __init__(self, channels: Sequence[str], width: int, hidden_states: int = 0, model_width: int = 0) -> None:
        super().__init__()
        unknown = [name for name in channels if name not in CHANNELS]
        if unknown or not channels:
            raise ValueError(f"channels={list(channels)!r}: expected some of {', '.join(CHANNELS)}")
        if hidden_states > model_width:
            raise ValueError(f"hidden_states={hidden_states}: the model's hidden states have {model_width} numbers")
        self.of_proposals = tuple(channels)
        self.hidden_states = hidden_states
        self.channels = (*channels, *(f"{HIDDEN}{number}" for number in range(hidden_states)))
        self.register_buffer("mean", torch.zeros(len(self.channels)))
        self.register_buffer("deviation", torch.ones(len(self.channels)))
        if hidden_states:
            self.register_buffer("hidden_map", torch.zeros(model_width, hidden_states))
        self.enter = nn.Linear(len(self.channels), width)
        self.leave = nn.Linear(width, 1)

    def options(self) -> dict[str, Any]:
        """Return the arguments that all of these networks have, as JSON values."""
        described: dict[str, Any] = {"channels": list(self.of_proposals)}
        if self.hidden_states:
            described |= {"hidden_states": self.hidden_states, "model_width": len(self.hidden_map)}
        return described

    def normalise_by(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the normalisation. A channel that never varies is only shifted.

        Args:
            mean: [C], the means of the channels over the training positions.
            deviation: [C], their standard deviations.
        """
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def _entered(self, inputs: Tensor, valid: Tensor) -> Tensor:
        return self.enter((inputs - self.mean) / self.deviation) * valid[..., None]


class Conv(LengthFree):
    """Residual convolutions along the window. A position sees `layers` x (`kernel` // 2) neighbours to each side.

    Args:
        channels: Names in `CHANNELS`.
        hidden: The features at each position.
        layers: The number of convolutions.
        kernel: The width of a convolution in tokens, an odd number.
        hidden_states: As for `LengthFree`.
        model_width: As for `LengthFree`.

    Raises:
        ValueError: The kernel is even, or a channel is unknown.
    """

    def __init__(
        self,
        channels: Sequence[str] = DEFAULT_CHANNELS,
        hidden: int = 32,
        layers: int = 4,
        kernel: int = 5,
        hidden_states: int = 0,
        model_width: int = 0,
    ) -> None:
        super().__init__(channels, hidden, hidden_states, model_width)
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel}: expected an odd number")
        self.sizes = {"hidden": hidden, "layers": layers, "kernel": kernel}
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        self.convolutions = nn.ModuleList(nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def options(self) -> dict[str, Any]:
        return super().options() | self.sizes

    def forward(self, inputs: Tensor, valid: Tensor, proposal: Tensor) -> Tensor:
        """Compute the logits [R, W]. Positions behind a window's end do not change the logits inside it."""
        features = self._entered(inputs, valid)
        inside = valid[..., None]
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            mixed = convolution((norm(features) * inside).transpose(1, 2)).transpose(1, 2)
            features = features + functional.gelu(mixed)
        return self.leave(self.norm(features))[..., 0]


class _Block(nn.Module):
    """A layer of self-attention, with learned biases for distance and for equal proposals, and of feed-forward."""

    def __init__(self, hidden: int, heads: int, same_proposal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.mix_in = nn.Linear(hidden, 3 * hidden)
        self.mix_out = nn.Linear(hidden, hidden)
        self.distance = nn.Parameter(torch.zeros(heads, 2 * REACH + 1))
        self.same = nn.Parameter(torch.zeros(heads)) if same_proposal else None
        self.widen = nn.Linear(hidden, 2 * hidden)
        self.narrow = nn.Linear(2 * hidden, hidden)

    def forward(self, features: Tensor, valid: Tensor, same: Tensor) -> Tensor:
        rows, width, hidden = features.shape
        mixed_in = self.mix_in(self.norm1(features)).view(rows, width, 3, self.heads, -1)
        query, key, value = mixed_in.permute(2, 0, 3, 1, 4)  # [R, H, W, features of a head] each
        place = torch.arange(width, device=features.device)
        bias = self.distance[:, (place[None, :] - place[:, None]).clamp(-REACH, REACH) + REACH]  # [H, W, W]
        if self.same is not None:
            bias = bias + SAME_SCALE * self.same[:, None, None] * same[:, None]
        # [R, H, W, W]; the least bias is finite, so that a row without any position does not give NaN
        bias = torch.where(valid[:, None, None, :], bias, -1e9)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        features = features + self.mix_out(mixed.transpose(1, 2).reshape(rows, width, hidden))
        return features + self.narrow(functional.gelu(self.widen(self.norm2(features))))


class Transformer(LengthFree):
    """A small transformer over the window. It knows the distance between two positions, and so works with any length.

    Two proposals may each be right alone and wrong together, for example when two places of an answer propose the same
    word in one step. No channel of a single position shows this. The attention can therefore depend on whether two
    masked positions propose the same token.

    Args:
        channels: Names in `CHANNELS`.
        hidden: The features at each position, a multiple of `heads`.
        layers: The number of layers.
        heads: The number of attention heads.
        same_proposal: True lets the attention depend on equal proposals.
        overlap: True lets it depend on the overlap of the two positions' distributions in place of equal proposals.
        hidden_states: As for `LengthFree`.
        model_width: As for `LengthFree`.

    Raises:
        ValueError: `hidden` is not a multiple of `heads`, or a channel is unknown.
    """

    def __init__(
        self,
        channels: Sequence[str] = DEFAULT_CHANNELS,
        hidden: int = 32,
        layers: int = 2,
        heads: int = 4,
        same_proposal: bool = True,
        hidden_states: int = 0,
        model_width: int = 0,
        overlap: bool = False,
    ) -> None:
        super().__init__(channels, hidden, hidden_states, model_width)
        if overlap and not same_proposal:
            raise ValueError("overlap=True stands in place of equal proposals: leave same_proposal out")
        self.overlap = overlap
        if hidden % heads:
            raise ValueError(f"hidden={hidden}: expected a multiple of heads={heads}")
        self.sizes = {"hidden": hidden, "layers": layers, "heads": heads, "same_proposal": same_proposal}
        self.blocks = nn.ModuleList(_Block(hidden, heads, same_proposal) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def options(self) -> dict[str, Any]:
        return super().options() | self.sizes | ({"overlap": True} if self.overlap else {})

    def forward(self, inputs: Tensor, valid: Tensor, proposal: Tensor, overlap: Tensor | None = None) -> Tensor:
        """Compute the logits [R, W]. A network with `overlap` also takes the overlap [R, W, W] float32 of a window."""
        features = self._entered(inputs, valid)
        same = overlap  # [R, W, W]
        if same is None:
            same = (proposal[:, :, None] == proposal[:, None, :]) & (proposal != DECIDED)[:, :, None]
        for block in self.blocks:
            features = block(features, valid, same)
        return self.leave(self.norm(features))[..., 0]


NETWORKS: dict[str, type[PredictorNetwork]] = {"mlp": MLP, "conv": Conv, "transformer": Transformer}
