"""The Learn2PD filter (arXiv 2509.25188): a tiny network that says, per position of a block, whether the proposal is final.

Input: the block's confidences (of committed positions too, the model's own probability there). Output: one logit per position. Commit
a masked position when sigmoid(logit) > threshold, and in any case the most confident one. Network: Linear(W, H), ReLU, Linear(H, W);
2,112 parameters at W = H = 32.

Deviations from the authors' code: none in the rule. A block shorter than W is padded with zeros on the right, as theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.policies.base import most_confident
from learn2pd.types import Commit, DecodeState, Prediction, Window


class FilterNetwork(nn.Module):
    """Args: width, block length in tokens; hidden, units of the hidden layer."""

    def __init__(self, width: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.width, self.hidden = width, hidden
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)

    def forward(self, confidence: Tensor) -> Tensor:
        """Logits [..., W] of confidences [..., W]."""
        return self.linear2(torch.relu(self.linear1(confidence)))


class FilterPolicy:
    """Args: network; threshold on the network's probability, 0 to 1."""

    name = "filter"
    needs: frozenset[str] = frozenset()
    scores_committed = True

    def __init__(self, network: FilterNetwork, threshold: float) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"filter threshold={threshold}: expected a probability from 0 to 1")
        self.network, self.threshold = network.eval(), threshold
        self.window_width: int | None = network.width

    def start(self, state: DecodeState) -> FilterNetwork:
        return self.network.to(state.tokens.device)

    def select(self, prediction: Prediction, eligible: Tensor, state: DecodeState, memory: FilterNetwork) -> Commit:
        probability = memory(window_view(prediction.confidence, state.window, memory.width)).sigmoid()  # [B, W]
        accepted = canvas_view(probability > self.threshold, state.window, state.gen_length) & eligible
        surest = most_confident(prediction.confidence, eligible)
        return Commit(accepted | surest, forced=surest & ~accepted)


def window_view(values: Tensor, window: Window, width: int) -> Tensor:
    """[B, W] the entries of [B, G] that each row's window covers, zeros past its end."""
    offset = torch.arange(width, device=values.device)
    position = window.start[:, None] + offset  # [B, W], may run past the canvas
    inside = position < window.stop[:, None]
    return functional.pad(values, (0, width)).gather(1, position).masked_fill(~inside, 0)


def canvas_view(values: Tensor, window: Window, gen_length: int) -> Tensor:
    """The reverse: [B, G] with the entries of [B, W] at each row's window, False or 0 elsewhere."""
    width = values.shape[1]
    position = window.start[:, None] + torch.arange(width, device=values.device)
    canvas = values.new_zeros(len(values), gen_length + width).scatter_(1, position, values)
    return canvas[:, :gen_length]
