"""What LLaDA and Dream have in common as transformers models: everything but their layers and where a checkpoint keeps its parts."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from learn2pd.models.kv import KVStore, KVView
from learn2pd.models.layers import RMSNorm, rotary_tables


class Parts(NamedTuple):
    """The modules a forward runs through, wherever the hub's names put them."""

    embedding: nn.Module
    layers: (
        nn.ModuleList
    )  # each called with x [R, Q, D], rotary tables, mask [R, 1, 1 or Q, K] or None, kept, its number
    norm: nn.Module


class DiffusionNetwork(PreTrainedModel):
    """Masked diffusion language model; `forward` gives logits of every position, `hidden` and `score` the two halves of it.

    A family says where its `parts` are, sets its input embedding and gives its output embedding: a linear layer, or the input embedding
    where the two are tied. Its configuration answers to transformers' usual names.
    """

    base_model_prefix = "model"
    _supports_sdpa = True

    def parts(self) -> Parts:
        raise NotImplementedError

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.parts().embedding

    @property
    def head_width(self) -> int:
        """Of one attention head."""
        return self.config.hidden_size // self.config.num_attention_heads

    def new_store(self, rows: int, columns: int) -> KVStore:
        """Buffers for the keys and values of a run of `rows` rows and `columns` columns."""
        config = self.config
        return KVStore(
            config.num_hidden_layers,
            rows,
            columns,
            config.num_key_value_heads,
            self.head_width,
            self.dtype,
            self.device,
        )

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        kept: KVView | None = None,
    ) -> Tensor:
        """Final hidden states.

        Args:
            input_ids: [R, Q] token ids.
            position_ids: [R, Q] absolute positions; 0..Q-1 where not given.
            attention_mask: [R, K], nonzero where a column may be attended to, or [R, Q, K], the same for each query; None attends everywhere.
            kept: keys and values of other columns; None: K = Q.

        Returns:
            [R, Q, D] in the model's dtype.
        """
        parts = self.parts()
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        mask = (
            None
            if attention_mask is None
            else attention_mask.bool().view(len(attention_mask), 1, -1, attention_mask.shape[-1])
        )
        tables = rotary_tables(position_ids, self.head_width, self.config.rope_theta)
        x = parts.embedding(input_ids)
        for number, layer in enumerate(parts.layers):
            x = layer(x, tables, mask, kept, number)
        return parts.norm(x)

    def score(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits [..., V] of hidden states [..., D]."""
        head, embedding = self.get_output_embeddings(), self.get_input_embeddings()
        return functional.linear(hidden, cast(Tensor, embedding.weight)) if head is embedding else head(hidden)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Logits [R, Q, V] of every position where they are computed: a family with shifted logits says of which token they are."""
        return MaskedLMOutput(logits=self.score(self.hidden(input_ids, position_ids, attention_mask)))
