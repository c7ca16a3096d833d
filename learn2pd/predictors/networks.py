"""The networks behind the predictors: the paper's MLP, and a convolution and a transformer that work on windows of any length.

Every network maps channels [R, W, C] to one logit a position [R, W]. Channels, sizes and input normalisation are part of the network.
`forward` takes what `predictors.channels` makes of a window: inputs [R, W, C] float32, valid [R, W] bool, proposal [R, W] long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.predictors.features import CHANNELS, DECIDED, View, stack

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
REACH = 32  # tokens, farthest distance that the transformer tells from a farther one
SAME_SCALE = 10.0  # so that a few hundred steps of AdamW can make a head look at equal proposals alone


class PredictorNetwork(nn.Module):
    """What predictor networks share.

    Attributes:
        channels: names in `CHANNELS`, in the order of the inputs.
        width: the only window length it works at; None for any.
        sees_committed: wants the proposals' confidence at committed positions too.
        adds_surest: its policy commits the most confident position in every step, even where it accepts others (the paper's rule).
    """

    channels: tuple[str, ...]
    width: int | None = None
    sees_committed = False
    adds_surest = False

    def options(self) -> dict[str, Any]:
        """The constructor's arguments, JSON values."""
        raise NotImplementedError

    def probability(self, view: View) -> Tensor:
        """[R, W] float32: of yes, at every position of a window."""
        logits: Tensor = self(stack(view, self.channels), view.valid, view.proposal)
        return logits.sigmoid()


class MLP(PredictorNetwork):
    """The paper's filter (Learn2PD, arXiv 2509.25188): confidences of a block in, Linear(W, H), ReLU, Linear(H, W).

    2,112 parameters at W = H = 32. It cannot tell a committed position from a sure one, nor work at another length.

    Args:
        width: block length, tokens.
        hidden: units.
    """

    channels = ("confidence",)
    sees_committed = True
    adds_surest = True

    def __init__(self, width: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def options(self) -> dict[str, Any]:
        return {"width": self.width, "hidden": self.hidden}

    def forward(self, inputs: Tensor, valid: Tensor, proposal: Tensor) -> Tensor:
        """Logits [R, W]."""
        return self.linear2(torch.relu(self.linear1(inputs[..., 0])))


class LengthFree(PredictorNetwork):
    """Normalises its channels with the training positions' mean and deviation, which are saved as buffers."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: Sequence[str], width: int) -> None:
        super().__init__()
        unknown = [name for name in channels if name not in CHANNELS]
        if unknown or not channels:
            raise ValueError(f"channels={list(channels)!r}: expected some of {', '.join(CHANNELS)}")
        self.channels = tuple(channels)
        self.register_buffer("mean", torch.zeros(len(channels)))
        self.register_buffer("deviation", torch.ones(len(channels)))
        self.enter = nn.Linear(len(channels), width)
        self.leave = nn.Linear(width, 1)

    def normalise_by(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the normalisation: [C] each. A channel that never varies is only shifted."""
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def _entered(self, inputs: Tensor, valid: Tensor) -> Tensor:
        return self.enter((inputs - self.mean) / self.deviation) * valid[..., None]


class Conv(LengthFree):
    """Residual convolutions along the window. A position sees `layers` x (`kernel` // 2) neighbours to each side.

    Args:
        channels: names in `CHANNELS`.
        hidden: features a position.
        layers: convolutions.
        kernel: their width, odd, tokens.
    """

    def __init__(
        self, channels: Sequence[str] = DEFAULT_CHANNELS, hidden: int = 32, layers: int = 4, kernel: int = 5
    ) -> None:
        super().__init__(channels, hidden)
        if kernel % 2 == 0:
            raise ValueError(f"kernel={kernel}: expected an odd number")
        self.sizes = {"hidden": hidden, "layers": layers, "kernel": kernel}
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        self.convolutions = nn.ModuleList(nn.Conv1d(hidden, hidden, kernel, padding=kernel // 2) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def options(self) -> dict[str, Any]:
        return {"channels": list(self.channels), **self.sizes}

    def forward(self, inputs: Tensor, valid: Tensor, proposal: Tensor) -> Tensor:
        """Logits [R, W]; what lies past a window's end does not reach inside."""
        features, inside = self._entered(inputs, valid), valid[..., None]
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            mixed = convolution((norm(features) * inside).transpose(1, 2)).transpose(1, 2)
            features = features + functional.gelu(mixed)
        return self.leave(self.norm(features))[..., 0]


class _Block(nn.Module):
    """Self-attention with a learned bias by distance and for equal proposals, then a feed-forward layer; norms first."""

    def __init__(self, hidden: int, heads: int, same_proposal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.mix_in, self.mix_out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.distance = nn.Parameter(torch.zeros(heads, 2 * REACH + 1))
        self.same = nn.Parameter(torch.zeros(heads)) if same_proposal else None
        self.widen, self.narrow = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)

    def forward(self, features: Tensor, valid: Tensor, same: Tensor) -> Tensor:
        rows, width, hidden = features.shape
        query, key, value = (
            self.mix_in(self.norm1(features)).view(rows, width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        place = torch.arange(width, device=features.device)
        bias = self.distance[:, (place[None, :] - place[:, None]).clamp(-REACH, REACH) + REACH]  # [H, W, W]
        if self.same is not None:
            bias = bias + SAME_SCALE * self.same[:, None, None] * same[:, None]
        bias = torch.where(
            valid[:, None, None, :], bias, -1e9
        )  # [R, H, W, W]; finite: a row without any position must not give NaN
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        features = features + self.mix_out(mixed.transpose(1, 2).reshape(rows, width, hidden))
        return features + self.narrow(functional.gelu(self.widen(self.norm2(features))))


class Transformer(LengthFree):
    """A small transformer over the window; positions are told by their distance, so that any length works.

    Proposals that are each right alone may exclude each other: two places of an answer that take the same word in one step. No channel of one
    position shows that. So attention may tell which undecided positions propose the same token, whatever token it is.

    Args:
        channels: names in `CHANNELS`.
        hidden: features a position, a multiple of `heads`.
        layers, heads: of the transformer.
        same_proposal: attend by equal proposals too.
    """

    def __init__(
        self,
        channels: Sequence[str] = DEFAULT_CHANNELS,
        hidden: int = 32,
        layers: int = 2,
        heads: int = 4,
        same_proposal: bool = True,
    ) -> None:
        super().__init__(channels, hidden)
        if hidden % heads:
            raise ValueError(f"hidden={hidden}: expected a multiple of heads={heads}")
        self.sizes = {"hidden": hidden, "layers": layers, "heads": heads, "same_proposal": same_proposal}
        self.blocks = nn.ModuleList(_Block(hidden, heads, same_proposal) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)

    def options(self) -> dict[str, Any]:
        return {"channels": list(self.channels), **self.sizes}

    def forward(self, inputs: Tensor, valid: Tensor, proposal: Tensor) -> Tensor:
        """Logits [R, W]."""
        features = self._entered(inputs, valid)
        same = (proposal[:, :, None] == proposal[:, None, :]) & (proposal != DECIDED)[:, :, None]  # [R, W, W]
        for block in self.blocks:
            features = block(features, valid, same)
        return self.leave(self.norm(features))[..., 0]


NETWORKS: dict[str, type[PredictorNetwork]] = {"mlp": MLP, "conv": Conv, "transformer": Transformer}
