"""The transformer under the tensor names of Qwen: `model.layers.0.self_attn.q_proj` and so on, and `lm_head`.

Dream, SDAR, Fast-dLLM v2 and LLaDA-MoE have these names. They differ in biases, norms of queries and keys, the kind of
feed-forward layer, and in what a query sees, which the caller's mask decides.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig

from learn2pd.models.layers import LayerCall, RMSNorm
from learn2pd.models.network import DiffusionNetwork, Parts


class Attention(nn.Module):
    """Grouped-query attention.

    Args:
        config: The sizes: `hidden_size`, `num_attention_heads`, `num_key_value_heads`.
        head_width: The features of a head.
        bias: True adds a bias to queries, keys and values.
        norm_eps: The eps of a norm over each head of queries and keys; None has no such norm.
    """

    def __init__(self, config: PretrainedConfig, head_width: int, bias: bool, norm_eps: float | None) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_width = head_width
        self.q_proj = nn.Linear(width, config.num_attention_heads * head_width, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head_width, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head_width, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * head_width, width, bias=False)
        self.q_norm = nn.Identity() if norm_eps is None else RMSNorm(head_width, norm_eps)
        self.k_norm = nn.Identity() if norm_eps is None else RMSNorm(head_width, norm_eps)

    def forward(self, x: Tensor, call: LayerCall) -> Tensor:
        queried = call.at_asked(x)
        q, k, v = (
            project(columns).unflatten(-1, (-1, self.head_width))
            for project, columns in ((self.q_proj, queried), (self.k_proj, x), (self.v_proj, x))
        )
        return self.o_proj(call.attend(self.q_norm(q), self.k_norm(k), v))


class DecoderLayer(nn.Module):
    """One layer: attention and feed-forward, each behind a norm.

    Args:
        config: `hidden_size` and `rms_norm_eps`.
        attention: The attention.
        mlp: The feed-forward layer.
    """

    def __init__(self, config: PretrainedConfig, attention: Attention, mlp: nn.Module) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, call: LayerCall) -> Tensor:
        """Run the layer.

        Args:
            x: [R, Q, D].
            call: What the layer needs beside it.

        Returns:
            [R, Q or M, D].
        """
        mixed = self.self_attn(self.input_layernorm(x), call)
        x = call.at_asked(x) + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Holds the modules under their names: `embed_tokens`, `layers`, `norm`."""

    def __init__(self, config: PretrainedConfig, layers: list[DecoderLayer]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DecoderNetwork(DiffusionNetwork):
    """A network of these layers. A family implements `layer`.

    With `tie_word_embeddings`, the embedding is the head.
    """

    _no_split_modules: ClassVar = ["DecoderLayer"]

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.model = Backbone(config, [self.layer(number) for number in range(config.num_hidden_layers)])
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def layer(self, number: int) -> DecoderLayer:
        """Build one layer.

        Args:
            number: The number of the layer, counted from 0.
        """
        raise NotImplementedError

    def parts(self) -> Parts:
        return Parts(self.model.embed_tokens, self.model.layers, self.model.norm)

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
