"""The base class of the LLaDA and Dream networks. Only the layers and the names in a checkpoint differ between them."""

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
    """The modules through which a forward runs, whatever their names in a checkpoint.

    Attributes:
        embedding: The input embedding.
        layers: The layers. The network calls each one with x [R, Q, D], the rotary tables, the mask
            [R, 1, 1 or Q, K] or None, the kept keys and values or None, and its number.
        norm: The last norm.
    """

    embedding: nn.Module
    layers: nn.ModuleList
    norm: nn.Module


class DiffusionNetwork(PreTrainedModel):
    """A masked diffusion language model.

    `hidden` computes hidden states, `score` turns them into logits, and `forward` does both for every position.

    A family implements `parts`, `set_input_embeddings` and `get_output_embeddings`. The output embedding is a linear
    layer, or the input embedding where the two are tied. The configuration of a family has transformers' usual names.
    """

    base_model_prefix = "model"
    _supports_sdpa = True

    def parts(self) -> Parts:
        """Return the modules of the network."""
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
        """The number of features of one attention head."""
        return self.config.hidden_size // self.config.num_attention_heads

    def new_store(self, rows: int, columns: int) -> KVStore:
        """Make the buffers for the keys and values of a run.

        Args:
            rows: The rows of the batch.
            columns: The columns of the batch.
        """
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
        """Compute the final hidden states.

        Args:
            input_ids: [R, Q] long, the token ids.
            position_ids: [R, Q] long, absolute positions; None stands for 0..Q-1.
            attention_mask: [R, K], or [R, Q, K] with a row for each query, nonzero where a column may be attended to.
                None attends everywhere.
            kept: The kept keys and values of other columns; with None, K = Q.

        Returns:
            [R, Q, D] in the type of the weights.
        """
        parts = self.parts()
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool().view(len(attention_mask), 1, -1, attention_mask.shape[-1])
        tables = rotary_tables(position_ids, self.head_width, self.config.rope_theta)
        x = parts.embedding(input_ids)
        for number, layer in enumerate(parts.layers):
            x = layer(x, tables, mask, kept, number)
        return parts.norm(x)

    def score(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., D] to the logits [..., V] of the vocabulary."""
        head = self.get_output_embeddings()
        embedding = self.get_input_embeddings()
        return functional.linear(hidden, cast(Tensor, embedding.weight)) if head is embedding else head(hidden)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Compute the logits of every position, as transformers' classes do.

        Args:
            input_ids: [R, Q] long, the token ids.
            attention_mask: As for `hidden`.
            position_ids: As for `hidden`.

        Returns:
            Logits [R, Q, V], each at the position that computed it, also in a family with shifted logits.
        """
        return MaskedLMOutput(logits=self.score(self.hidden(input_ids, position_ids, attention_mask)))
