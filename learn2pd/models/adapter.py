"""The model as the loop sees it: a plan is one call of the network, and only the scored columns get logits.

In the shapes, B is the number of rows of the batch, L of its columns, R of rows of a plan, Q of its query columns, S of
its shadow columns, K of attended columns, D of features, N of scored positions, V of tokens of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learn2pd.models.kv import KVStore
from learn2pd.models.network import DiffusionNetwork
from learn2pd.types import ForwardPlan, ModelSpec


class ModelAdapter:
    """Turns plans into calls of a network.

    Args:
        network: A network of one of the families.
        spec: The facts about the model that the loop needs.
        compile: True lets torch.compile fuse the layers.
    """

    def __init__(self, network: DiffusionNetwork, spec: ModelSpec, compile: bool = False) -> None:
        self.network = network
        self.spec = spec
        self._hidden = torch.compile(network.hidden, dynamic=True) if compile else network.hidden

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.network.device

    def new_store(self, rows: int, columns: int) -> KVStore:
        """Make the buffers for the keys and values of a run.

        Args:
            rows: B.
            columns: L.
        """
        return self.network.new_store(rows, columns)

    def forward(self, tokens: Tensor, plan: ForwardPlan, store: KVStore | None) -> Tensor:
        """Compute the hidden states of a plan.

        Args:
            tokens: [B, L] long, the tokens of the whole batch.
            plan: The rows and columns to compute.
            store: The keys and values of the run; None where the cache keeps nothing.

        Returns:
            [R, Q + S, D], the hidden states of the query columns, and behind them those of the shadow columns; those
            of `plan.asked` alone where it is given.
        """
        rows = plan.rows[:, None]
        query = tokens[rows, plan.query]
        position = plan.position
        seen = self._seen(plan)
        if plan.shadow is not None:
            # A shadow column has the place whose output predicts its token. With shifted logits this is the column
            # before the token, and the shadow column holds that column's token. Otherwise it is the token's own column,
            # and the shadow column holds a mask.
            place = plan.shadow - self.spec.shift
            unknown = tokens[rows, place] if self.spec.shifted_logits else torch.full_like(place, self.spec.mask_id)
            query = torch.cat((query, unknown), dim=1)
            position = torch.cat((position, place - self._pad(plan)), dim=1)
            seen = self._with_shadows(plan, seen, place)
        return self._hidden(query, position, seen, store.view(plan) if store is not None else None, plan.asked)

    def score(self, hidden: Tensor) -> Tensor:
        """Project hidden states to the vocabulary.

        Args:
            hidden: [N, D].

        Returns:
            Logits [N, V]. They predict the next column's token where `spec.shifted_logits` is True.
        """
        return self.network.score(hidden)

    @staticmethod
    def _pad(plan: ForwardPlan) -> Tensor:
        """Return the columns of left padding of each row, [R, 1]."""
        return (plan.query - plan.position)[:, -1:]

    @staticmethod
    def _keys(plan: ForwardPlan) -> Tensor:
        """Return the columns to which the plan attends, [1 or R, K]."""
        return plan.query if plan.span is None else torch.arange(*plan.span, device=plan.query.device)[None]

    def _seen(self, plan: ForwardPlan) -> Tensor | None:
        """Return the columns that each query sees, [R, K] or [R, Q, K] bool, or None where it sees all.

        A query sees a column if both the plan and the model's own attention allow it.
        """
        if self.spec.causal_block is None:
            return plan.key_mask
        key_block = (self._keys(plan) - self._pad(plan)).div(self.spec.causal_block, rounding_mode="floor")  # [R, K]
        seen = key_block[:, None] <= plan.position[..., None] // self.spec.causal_block
        return seen if plan.key_mask is None else seen & _per_query(plan.key_mask)

    def _with_shadows(self, plan: ForwardPlan, seen: Tensor | None, place: Tensor) -> Tensor:
        """Extend the mask of seen columns by the shadow columns, to [R, Q + S, K + S] bool.

        A shadow column sees itself and the columns that its place sees, without the column of its own token. No other
        column sees a shadow column.
        """
        assert plan.shadow is not None
        rows, queries = plan.query.shape
        shadows = plan.shadow.shape[1]
        keys = self._keys(plan).expand(rows, -1)
        originals = torch.ones(1, 1, 1, dtype=torch.bool, device=keys.device) if seen is None else _per_query(seen)
        originals = originals.expand(rows, queries, keys.shape[1])
        of_shadow = keys[:, None] != plan.shadow[..., None]  # [R, S, K]
        if plan.key_mask is not None:
            of_shadow = of_shadow & _per_query(plan.key_mask)[:, :1]
        if self.spec.causal_block is not None:
            pad = self._pad(plan)[..., None]
            block = self.spec.causal_block
            key_block = (keys[:, None] - pad).div(block, rounding_mode="floor")
            of_shadow = of_shadow & (key_block <= (place[..., None] - pad) // block)
        itself = torch.eye(shadows, dtype=torch.bool, device=keys.device).expand(rows, -1, -1)
        unseen = torch.zeros(rows, queries, shadows, dtype=torch.bool, device=keys.device)
        return torch.cat((torch.cat((originals, unseen), dim=2), torch.cat((of_shadow, itself), dim=2)), dim=1)


def _per_query(mask: Tensor) -> Tensor:
    """Turn a mask [R, K] into [R, 1, K], and leave a mask [R, Q, K] as it is."""
    return mask[:, None] if mask.ndim == 2 else mask
