"""The base class of all networks. Only the layers and the names in a checkpoint differ between the families."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from learn2pd.errors import UserError
from learn2pd.models.experts import MixtureOfExperts
from learn2pd.models.kv import KVStore, KVView
from learn2pd.models.layers import Asked, LayerCall, RMSNorm, project, rotary_tables
from learn2pd.registry import EXPORTERS


class Parts(NamedTuple):
    """The modules through which a forward runs, whatever their names in a checkpoint.

    Attributes:
        embedding: The input embedding.
        layers: The layers. The network calls each one with x [R, Q, D] and a `LayerCall`.
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

    Attributes:
        shifted_logits: True where the output at position i predicts the token at i + 1.
        mixes_experts: True where some layers have experts, of which every token runs through a few.
        head_name: The name of the head in a checkpoint. Where the embedding is the head, a checkpoint may hold the head
            all the same if the two are equal.
    """

    shifted_logits: ClassVar[bool] = False
    mixes_experts: ClassVar[bool] = False
    head_name: ClassVar[str] = "lm_head.weight"

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

    @property
    def rotary_width(self) -> int:
        """The number of features of a head that the rotary positions turn."""
        return self.head_width

    @property
    def causal_block(self) -> int | None:
        """The tokens of a block, of a network in which a block sees itself and the blocks before it.

        None where every token sees every other token.
        """
        return None

    def join_experts(self) -> None:
        """Lay the weights of the experts of every layer side by side, where torch has grouped products for them."""
        for module in self.modules():
            if isinstance(module, MixtureOfExperts):
                module.join()

    def new_store(self, rows: int, columns: int) -> KVStore:
        """Make the buffers for the keys and values of a run.

        Args:
            rows: The rows of the batch.
            columns: The columns of the batch.
        """
        config = self.config
        shape = (rows, 0, config.num_key_value_heads, self.head_width)
        devices = [next(layer.parameters()).device for layer in self.parts().layers]
        keys, values = ([torch.zeros(shape, dtype=self.dtype, device=device) for device in devices] for _ in range(2))
        return KVStore(keys, values, columns)

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        kept: KVView | None = None,
        asked: Tensor | None = None,
    ) -> Tensor:
        """Compute the final hidden states.

        Args:
            input_ids: [R, Q] long, the token ids.
            position_ids: [R, Q] long, absolute positions; None stands for 0..Q-1.
            attention_mask: [R, K], or [R, Q, K] with a row for each query, nonzero where a column may be attended to.
                None attends everywhere.
            kept: The kept keys and values of other columns; with None, K = Q.
            asked: [R, M] long, the places in the query whose hidden states are wanted; None for all. The last layer
                computes queries and the feed-forward at these places alone, and keys and values at all.

        Returns:
            [R, Q or M, D] in the type of the weights.
        """
        parts = self.parts()
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        mask = None
        if attention_mask is not None:
            mask = attention_mask.bool().view(len(attention_mask), 1, -1, attention_mask.shape[-1])
        tables = rotary_tables(position_ids, self.rotary_width, self.config.rope_theta)
        x = parts.embedding(input_ids)
        last = len(parts.layers) - 1
        for number, layer in enumerate(parts.layers):
            columns = None if asked is None or number < last else Asked.at(asked, tables, mask)
            x = layer(x, LayerCall(tables, mask, kept, number, columns))
        return parts.norm(x)

    def score(self, hidden: Tensor) -> Tensor:
        """Project hidden states [..., D] to the logits [..., V] of the vocabulary."""
        head = self.get_output_embeddings()
        plain = head is self.get_input_embeddings() or (type(head) is nn.Linear and head.bias is None)
        return project(hidden, cast(Tensor, head.weight)) if plain else head(hidden)

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
            attention_mask: As for `hidden`. A mask without a row for each query, or None, is narrowed to the blocks
                that a query sees, where the network has causal blocks.
            position_ids: As for `hidden`.

        Returns:
            Logits [R, Q, V], each at the position that computed it, also in a family with shifted logits.
        """
        if self.causal_block is not None and (attention_mask is None or attention_mask.ndim == 2):
            place = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
            block = (place if position_ids is None else position_ids) // self.causal_block
            seen = block[:, None, :] <= block[:, :, None]  # [1 or R, Q, Q]
            attention_mask = seen if attention_mask is None else seen & attention_mask.bool()[:, None]
        return MaskedLMOutput(logits=self.score(self.hidden(input_ids, position_ids, attention_mask)))

    def generate(self, inputs: Tensor | None = None, **options: Any) -> Tensor:
        """Decode prompts with a policy, as `learn2pd.exporters.transformers.generate` does.

        Args:
            inputs: [R, P] long, the prompts, padded on the left; a tokenizer names them `input_ids`.
            options: The options of that function: `policy`, `attention_mask`, `max_new_tokens` and so on.

        Returns:
            [R, P + max_new_tokens] long.

        Raises:
            UserError: An option is missing or does not fit; or `custom_generate` is given, which is for the classes of
                other packages.
        """
        if options.pop("custom_generate", None) is not None:
            raise UserError(
                f"custom_generate is given: {type(self).__name__} has learn2pd's generate itself, leave it out"
            )
        options.pop("trust_remote_code", None)
        # the exporters know the loop, and the loop knows the networks
        exporter = importlib.import_module(EXPORTERS["transformers"])
        return cast(Tensor, exporter.generate(self, inputs, **options))
