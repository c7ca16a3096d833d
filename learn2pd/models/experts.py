"""Mixtures of experts: every token runs through the few experts that a router chooses for it.

Where torch has grouped matrix products for the weights' device and type, three of them run all experts, and no step
waits for the device. Elsewhere the experts run one after the other, each on the tokens that chose it. Either way the
memory that a forward needs grows with the tokens, and not with the number of experts.

In the shapes, N is the number of tokens, D of features, E of experts, C of experts that a token chooses.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.models.layers import SwiGLU
from learn2pd.tensors import widened

PRODUCTS = ("gate_proj", "up_proj", "down_proj")


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
        self.joined: dict[str, Tensor] = {}

    def join(self) -> None:
        """Lay the weights of all experts side by side, where torch has grouped products for them.

        Each expert's weight becomes a view of its part, so that the weights keep their names and take no more memory.
        """
        first = self.experts[0].get_parameter("gate_proj.weight")
        if not has_grouped_products(first.device, first.dtype):
            return
        for name in PRODUCTS:
            weights = [expert.get_parameter(f"{name}.weight") for expert in self.experts]
            self.joined[name] = torch.stack([weight.detach() for weight in weights])
            for weight, part in zip(weights, self.joined[name], strict=True):
                weight.data = part

    def _apply(self, *arguments: Any, **options: Any) -> MixtureOfExperts:
        self.joined = {}  # a move or another type gives every expert a weight of its own
        return super()._apply(*arguments, **options)

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
        routed, weights = self.route(functional.linear(widened(tokens), widened(cast(Tensor, self.gate.weight))))
        mixed = self._mixed_in_groups if self.joined else self._mixed_one_by_one
        return mixed(tokens, routed, weights).view_as(x)

    def _mixed_in_groups(self, tokens: Tensor, routed: Tensor, weights: Tensor) -> Tensor:
        """Run all experts at once, each on the tokens that chose it, and add up their weighted outputs [N, D]."""
        expert, order = routed.flatten().sort(stable=True)
        ends = torch.searchsorted(expert, torch.arange(len(self.experts), device=expert.device), right=True).int()

        def product(x: Tensor, name: str) -> Tensor:
            return functional.grouped_mm(x, self.joined[name].transpose(1, 2), offs=ends)

        x = tokens[order // routed.shape[1]]
        x = product(functional.silu(product(x, "gate_proj")) * product(x, "up_proj"), "down_proj")
        outputs = torch.empty_like(x).index_copy_(0, order, x).view(*routed.shape, -1)  # [N, C, D]
        return torch.einsum("ncd,nc->nd", outputs.to(weights.dtype), weights).to(tokens.dtype)

    def _mixed_one_by_one(self, tokens: Tensor, routed: Tensor, weights: Tensor) -> Tensor:
        """Run every expert on the tokens that chose it, and add up its weighted outputs [N, D]."""
        mixed = torch.zeros_like(tokens, dtype=weights.dtype)
        order = routed.flatten().argsort(stable=True)
        counts = torch.bincount(routed.flatten(), minlength=len(self.experts)).tolist()  # this waits for the device
        for expert, choices in zip(self.experts, order.split(counts), strict=True):
            if len(choices):
                rows = choices // routed.shape[1]
                mixed.index_add_(0, rows, expert(tokens[rows]) * weights.flatten()[choices, None])
        return mixed.to(tokens.dtype)


def has_grouped_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether torch has grouped matrix products for tensors of a device and a type.

    Args:
        device: The device.
        dtype: The type.
    """
    if not hasattr(functional, "grouped_mm"):  # before torch 2.10
        return False
    if device.type == "cuda":
        return dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type in ("cpu", "meta") and dtype in (torch.float32, torch.bfloat16, torch.float16)


def best_of_softmax(logits: Tensor, count: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Choose the experts with the largest probability.

    Args:
        logits: [N, E].
        count: C.
        normalise: True divides the weights of a token by their sum.

    Returns:
        The experts [N, C] long, and their weights [N, C].
    """
    weights, routed = logits.softmax(-1).topk(count, dim=-1)
    return routed, weights / weights.sum(-1, keepdim=True) if normalise else weights
