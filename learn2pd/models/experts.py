"""Mixtures of experts: every token runs through the few experts that a router chooses for it.

The experts run one after the other, each on the tokens that chose it. So the memory that a forward needs grows with the
tokens, and not with the number of experts.

In the shapes, N is the number of tokens, D of features, E of experts, C of experts that a token chooses.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.models.layers import SwiGLU
from learn2pd.tensors import widened


class MixtureOfExperts(nn.Module):
    """A feed-forward layer of experts. A family implements `route`.

    Args:
        width: The features of a token.
        inner_width: The features inside an expert.
        experts: E.
        gate: The router; its `weight` is [E, D].
    """

    def __init__(self, width: int, inner_width: int, experts: int, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.experts = nn.ModuleList(SwiGLU(width, inner_width) for _ in range(experts))

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the experts of every token.

        Args:
            logits: [N, E], in at least float32.

        Returns:
            The experts [N, C] long, each at most once, and their weights [N, C].
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)
        chosen, weights = self.route(functional.linear(widened(tokens), widened(cast(Tensor, self.gate.weight))))
        return self._mixed(tokens, chosen, weights).view_as(x)

    def _mixed(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Run every expert on the tokens that chose it, and add up its weighted outputs [N, D]."""
        mixed = torch.zeros_like(tokens, dtype=weights.dtype)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts)).tolist()  # this waits for the device
        for expert, choices in zip(self.experts, order.split(counts), strict=True):
            if len(choices):
                rows = choices // chosen.shape[1]
                mixed.index_add_(0, rows, expert(tokens[rows]) * weights.flatten()[choices, None])
        return mixed.to(tokens.dtype)


def best_of_softmax(logits: Tensor, count: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Choose the experts with the largest probability.

    Args:
        logits: [N, E].
        count: C.
        normalise: True divides the weights of a token by their sum.

    Returns:
        The experts [N, C] long, and their weights [N, C].
    """
    weights, chosen = logits.softmax(-1).topk(count, dim=-1)
    return chosen, weights / weights.sum(-1, keepdim=True) if normalise else weights
