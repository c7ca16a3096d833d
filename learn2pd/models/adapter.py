"""A model as the loop sees it: one call of the network for a plan, logits only where proposals are wanted."""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.models.kv import KVStore
from learn2pd.models.network import DiffusionNetwork
from learn2pd.types import ForwardPlan, ModelSpec


class ModelAdapter:
    """Turns plans into calls of a network.

    Args:
        network: of one of the families.
        spec: what the loop must know of it.
        compile: let torch.compile fuse the layers.
    """

    def __init__(self, network: DiffusionNetwork, spec: ModelSpec, compile: bool = False) -> None:
        self.network = network
        self.spec = spec
        self._hidden = torch.compile(network.hidden, dynamic=True) if compile else network.hidden

    @property
    def device(self) -> torch.device:
        return self.network.device

    def new_store(self, rows: int, columns: int) -> KVStore:
        """Buffers for the keys and values of a run."""
        return self.network.new_store(rows, columns)

    def forward(self, tokens: Tensor, plan: ForwardPlan, store: KVStore | None) -> Tensor:
        """Hidden states of a plan.

        Args:
            tokens: [B, L] long, of the whole batch.
            plan: which rows and columns.
            store: where the run's keys and values are; None where nothing is kept.

        Returns:
            [R, Q + S, D]: of the plan's query, and behind it of its shadow columns.
        """
        rows = plan.rows[:, None]
        query, position, seen = tokens[rows, plan.query], plan.position, self._seen(plan)
        if plan.shadow is not None:
            # a shadow column stands where the output for its token comes from, and holds no token where that is the token's own place
            place = plan.shadow - int(self.spec.shifted_logits)
            unknown = tokens[rows, place] if self.spec.shifted_logits else torch.full_like(place, self.spec.mask_id)
            query = torch.cat((query, unknown), dim=1)
            position = torch.cat((position, place - self._pad(plan)), dim=1)
            seen = self._with_shadows(plan, seen, place)
        return self._hidden(query, position, seen, store.view(plan) if store is not None else None)

    def score(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, D]; of the next column where `spec.shifted_logits`."""
        return self.network.score(hidden)

    @staticmethod
    def _pad(plan: ForwardPlan) -> Tensor:
        """[R, 1] columns of left padding."""
        return (plan.query - plan.position)[:, -1:]

    @staticmethod
    def _keys(plan: ForwardPlan) -> Tensor:
        """[1 or R, K] the columns that are attended to."""
        return plan.query if plan.span is None else torch.arange(*plan.span, device=plan.query.device)[None]

    def _seen(self, plan: ForwardPlan) -> Tensor | None:
        """[R, K] or [R, Q, K]: what the plan lets be seen, and of that what the model's own attention lets each query see."""
        if self.spec.causal_block is None:
            return plan.key_mask
        key_block = (self._keys(plan) - self._pad(plan)).div(self.spec.causal_block, rounding_mode="floor")  # [R, K]
        seen = key_block[:, None] <= plan.position[..., None] // self.spec.causal_block
        return seen if plan.key_mask is None else seen & _per_query(plan.key_mask)

    def _with_shadows(self, plan: ForwardPlan, seen: Tensor | None, place: Tensor) -> Tensor:
        """[R, Q + S, K + S] bool: shadow columns see what their place sees but their own original, and themselves; nobody else sees them."""
        assert plan.shadow is not None
        rows, queries = plan.query.shape
        shadows, keys = plan.shadow.shape[1], self._keys(plan).expand(rows, -1)
        originals = torch.ones(1, 1, 1, dtype=torch.bool, device=keys.device) if seen is None else _per_query(seen)
        originals = originals.expand(rows, queries, keys.shape[1])
        of_shadow = keys[:, None] != plan.shadow[..., None]  # [R, S, K]
        if plan.key_mask is not None:
            of_shadow = of_shadow & _per_query(plan.key_mask)[:, :1]
        if self.spec.causal_block is not None:
            pad, block = self._pad(plan)[..., None], self.spec.causal_block
            of_shadow = of_shadow & (
                (keys[:, None] - pad).div(block, rounding_mode="floor") <= (place[..., None] - pad) // block
            )
        itself = torch.eye(shadows, dtype=torch.bool, device=keys.device).expand(rows, -1, -1)
        unseen = torch.zeros(rows, queries, shadows, dtype=torch.bool, device=keys.device)
        return torch.cat((torch.cat((originals, unseen), dim=2), torch.cat((of_shadow, itself), dim=2)), dim=1)


def _per_query(mask: Tensor) -> Tensor:
    """[R, 1 or Q, K] of [R, K] or [R, Q, K]."""
    return mask[:, None] if mask.ndim == 2 else mask
