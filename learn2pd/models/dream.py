"""Dream as a transformers model: the hub's configuration fields, tensor names and arithmetic, without its remote code.

Dream (Ye et al. 2025, arXiv 2508.15487) is a bidirectional Qwen2 transformer: grouped-query attention, biases on
queries, keys and values, SwiGLU. It was adapted from an autoregressive model and keeps that model's alignment: the
output at position i predicts the token at i + 1.
`hidden` and `forward` leave each output at the position that computed it. Their callers shift the outputs
(`ModelSpec.shifted_logits`).

Deviations from the hub's modelling file: the network respects the attention mask, the caller may give the positions of
each row, and the rotation is computed in float32 whatever the type of the weights.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, Qwen2TokenizerFast

from learn2pd.models.fields import check_positive, check_whole, plain_rotation
from learn2pd.models.kv import KVView
from learn2pd.models.layers import RMSNorm, attend
from learn2pd.models.network import DiffusionNetwork, Parts

# The only values that this file implements. Without a check, another value would silently compute something else.
FIXED_FIELDS: dict[str, Any] = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "use_mrope": False,
    "tie_word_embeddings": False,
}
# Fields of the hub's config.json that do not change inference. They are kept so that a saved config has every field.
CARRIED_FIELDS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "sliding_window": None,
    "max_window_layers": 28,
    "full_attn_mask": True,
}


class DreamConfig(PretrainedConfig):
    """The fields of the hub's config.json.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "Dream"

    def __init__(
        self,
        vocab_size: int = 152064,
        hidden_size: int = 3584,
        intermediate_size: int = 18944,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int | None = 4,
        max_position_embeddings: int = 131072,
        rope_theta: float = 1000000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        mask_token_id: int = 151666,
        bos_token_id: int | None = 151643,
        eos_token_id: int = 151643,
        pad_token_id: int | None = 151643,
        use_cache: bool = False,
        **other: Any,
    ) -> None:
        for name, value in FIXED_FIELDS.items():
            if other.pop(name, value) != value:
                raise ValueError(f"config.json: {name} differs from {value!r}, the only value implemented for Dream")
            setattr(self, name, value)
        for name, value in CARRIED_FIELDS.items():
            setattr(self, name, other.pop(name, value))
        heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        rope_theta = plain_rotation(other, rope_theta)
        check_whole(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=heads,
            max_position_embeddings=max_position_embeddings,
        )
        check_positive(rope_theta=rope_theta, rms_norm_eps=rms_norm_eps)
        if hidden_size % (2 * num_attention_heads) or num_attention_heads % heads:
            raise ValueError(
                f"config.json: hidden_size={hidden_size}, num_attention_heads={num_attention_heads}, "
                f"num_key_value_heads={heads}: hidden_size must divide into num_attention_heads even parts "
                "and these into num_key_value_heads groups"
            )
        if other.get("layer_types") not in (None, ["full_attention"] * num_hidden_layers):
            raise ValueError(
                f"config.json: layer_types={other['layer_types']!r}, "
                "only full_attention in every layer is implemented for Dream"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = heads
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.mask_token_id = mask_token_id
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=False,
            **other,
        )


class DreamTokenizer(Qwen2TokenizerFast):
    """Qwen2's tokenizer under the name in Dream's tokenizer_config.json.

    The hub's own class of this name is remote code. It reads the same files (vocab.json, merges.txt) in the same way.
    """


class DreamAttention(nn.Module):
    """Grouped-query attention with biases on queries, keys and values."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        kv_width = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, kv_width)
        self.v_proj = nn.Linear(config.hidden_size, kv_width)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, kept: KVView | None, layer: int
    ) -> Tensor:
        return self.o_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), tables, mask, kept, layer))


class DreamMLP(nn.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DreamDecoderLayer(nn.Module):
    """One layer: attention and feed-forward, each behind a norm."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.self_attn = DreamAttention(config)
        self.mlp = DreamMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor], mask: Tensor | None, kept: KVView | None, layer: int
    ) -> Tensor:
        """Run the layer.

        Args:
            x: [R, Q, D].
            tables: The cosines and sines of `rotary_tables`.
            mask: [R, 1, 1 or Q, K] bool, True where a query attends to a column; None attends everywhere.
            kept: The kept keys and values; None attends to the query itself.
            layer: The number of the layer.

        Returns:
            [R, Q, D].
        """
        x = x + self.self_attn(self.input_layernorm(x), tables, mask, kept, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class DreamBackbone(nn.Module):
    """Holds the modules under the hub's names: `embed_tokens`, `layers`, `norm`."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DreamDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class DreamModel(DiffusionNetwork):
    """The network. Its logits at position i predict the token at i + 1."""

    config_class = DreamConfig
    _no_split_modules: ClassVar = ["DreamDecoderLayer"]
    config: DreamConfig

    def __init__(self, config: DreamConfig) -> None:
        super().__init__(config)
        self.model = DreamBackbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def parts(self) -> Parts:
        return Parts(self.model.embed_tokens, self.model.layers, self.model.norm)

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head
