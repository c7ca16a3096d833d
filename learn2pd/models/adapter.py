"""A model as the loop sees it: hidden states for a plan, logits only where proposals are wanted."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor

from learn2pd.models.llada import LLaDAModelLM
from learn2pd.types import ForwardPlan, ModelSpec


class ModelAdapter(Protocol):
    spec: ModelSpec

    @property
    def device(self) -> torch.device: ...

    def forward(self, tokens: Tensor, plan: ForwardPlan) -> Tensor:
        """Hidden states [R, Q, D] of `tokens` [R, Q], aligned to `plan.query`."""

    def score(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, D]."""

    def elapsed(self, started: float) -> float:
        """Seconds since `started` (time.perf_counter), with queued device work finished."""


class LLaDAAdapter:
    """Args: network and what the loop must know of it."""

    def __init__(self, network: LLaDAModelLM, spec: ModelSpec) -> None:
        self.network, self.spec = network, spec

    @property
    def device(self) -> torch.device:
        return self.network.model.transformer.wte.weight.device

    def forward(self, tokens: Tensor, plan: ForwardPlan) -> Tensor:
        return self.network.hidden(tokens, plan.position, plan.key_mask)

    def score(self, hidden: Tensor) -> Tensor:
        return self.network.score(hidden)

    def elapsed(self, started: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - started
