"""A model as the loop sees it: hidden states for a plan, logits only where proposals are wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.models.kv import KVStore
from learn2pd.models.network import DiffusionNetwork
from learn2pd.types import ForwardPlan, ModelSpec


class ModelAdapter:
    """Args: network and what the loop must know of it."""

    def __init__(self, network: DiffusionNetwork, spec: ModelSpec) -> None:
        self.network, self.spec = network, spec

    @property
    def device(self) -> torch.device:
        return self.network.device

    def new_store(self, rows: int, columns: int) -> KVStore:
        """Buffers for the keys and values of a run."""
        return self.network.new_store(rows, columns)

    def forward(self, tokens: Tensor, plan: ForwardPlan, store: KVStore | None) -> Tensor:
        """Hidden states [R, Q, D] of `tokens` [R, Q], aligned to `plan.query`."""
        return self.network.hidden(tokens, plan.position, plan.key_mask, store.view(plan) if store is not None else None)

    def score(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, D]; of the next column where `spec.shifted_logits`."""
        return self.network.score(hidden)

    def compile(self) -> None:
        """Let torch.compile fuse the layers."""
        self.network.hidden = torch.compile(self.network.hidden, dynamic=True)  # type: ignore[method-assign]
