"""The attention of a forward, for policies that read it.

The networks compute their attention in one fused call that returns no weights. While `AttentionMaps` is active, it
computes the weights of the layers it wants beside these calls, whatever the family.

In the shapes, R is the number of rows of the forward, H of heads, Q of query columns, K of attended columns, D of
features of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from learn2pd.errors import UserError
from learn2pd.types import DecodeState, ForwardPlan

SHARE = 8  # the last layers, one in so many, count; these are layers 28 to 31 of LLaDA's 32


class AttentionMaps(TorchFunctionMode):
    """The mean attention of the last eighth of the layers, at least of the last one, over all heads.

    Args:
        layers: The layers of the network.

    Attributes:
        mean: [R, Q, K] float32 after the forward; None before it.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.counted = max(1, layers // SHARE)
        self.left = layers
        self.mean: Tensor | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            if self.left <= self.counted:
                part = _weights(args[0], args[1], kwargs.get("attn_mask")) / self.counted
                self.mean = part if self.mean is None else self.mean + part
            self.left -= 1
        return func(*args, **kwargs)


def spread(maps: AttentionMaps, plan: ForwardPlan, state: DecodeState) -> Tensor:
    """Return the attention of a plan over whole sequences as an entry for every pair of columns of the batch.

    Args:
        maps: The maps of the plan's forward.
        plan: The plan. It keeps nothing, so that its query attends to itself.
        state: The state before the forward.

    Returns:
        [B, L, L] float32, 0 in the padding and in the rows and columns that the plan leaves out.

    Raises:
        UserError: The forward called nothing that could be read.
    """
    if maps.mean is None:
        raise UserError("a compiled model shows no attention weights: load it without compile, or use another policy")
    rows, width = plan.query.shape
    weights = maps.mean[:, :width, :width].expand(rows, -1, -1)
    if plan.key_mask is not None:
        weights = weights.masked_fill(~plan.key_mask[..., None], 0)  # what a column of the padding attends to
    attention = weights.new_zeros(*state.tokens.shape, state.tokens.shape[1])
    attention[plan.rows[:, None, None], plan.query[:, :, None], plan.query[:, None]] = weights
    return attention


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention weights, as the mean over the heads, [R, Q, K] float32.

    Args:
        q: [R, H, Q, D].
        k: [R, H or a divisor of it, K, D].
        mask: Bool, True where a query attends to a column, of a shape that fits [R, H, Q, K]; None attends everywhere.
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = (q.float() @ k.float().transpose(2, 3)) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).mean(1)
