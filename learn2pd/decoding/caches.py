"""What a step recomputes: a cache turns the state into forward plans.

Only `none` so far: every step computes the whole sequence of every open row.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from learn2pd.types import DecodeState, ForwardPlan


class Cache(Protocol):
    name: str

    def start(self, state: DecodeState) -> Any:
        """Memory of one run."""

    def plan(self, state: DecodeState, score: torch.Tensor, memory: Any) -> list[ForwardPlan]:
        """The forwards of this step; `score` [B, G] bool says where proposals are wanted."""


class NoCache:
    """Recompute everything, in one plan for all open rows, trimmed to the columns that any of them still uses."""

    name = "none"

    def start(self, state: DecodeState) -> None:
        return None

    def plan(self, state: DecodeState, score: torch.Tensor, memory: None) -> list[ForwardPlan]:
        rows = state.open.nonzero()[:, 0]
        pad, stop = state.pad[rows], state.prompt_width + state.visible[rows]
        bounds = torch.stack((pad.min(), pad.max(), stop.min(), stop.max())).tolist()  # one host synchronisation a step
        column = torch.arange(bounds[0], bounds[3], device=rows.device).expand(len(rows), -1)
        ragged = bounds[0] != bounds[1] or bounds[2] != bounds[3]
        wanted = torch.nn.functional.pad(score[rows], (state.prompt_width, 0))  # [R, L]
        return [
            ForwardPlan(
                rows=rows,
                query=column,
                position=(column - pad[:, None]).clamp_min(0),
                key_mask=(column >= pad[:, None]) & (column < stop[:, None]) if ragged else None,
                score=wanted[:, bounds[0] : bounds[3]],
            )
        ]
