"""Fast-dLLM v2 as a transformers model: the hub's fields, tensor names and arithmetic, without its remote code.

Fast-dLLM v2 (Wu et al. 2025, arXiv 2509.26328) is Qwen2.5 with block-causal attention: a token sees its own block and
the blocks before it, and blocks are counted from the first token of the prompt. It keeps the alignment of the
autoregressive model: the output at position i predicts the token at i + 1.

Deviations from the hub's modelling file: it shifts the outputs inside the slice that it forwards, so that the first
token of a slice is predicted by itself; here the caller shifts them, and the first token of a block is predicted by the
last token of the block before. The rotation is computed in float32 whatever the type of the weights.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from learn2pd.models.decoder import Attention, DecoderLayer, DecoderNetwork
from learn2pd.models.fields import (
    check_divides,
    check_full_attention,
    check_heads,
    check_positive,
    check_whole,
    plain_rotation,
    take_fields,
)
from learn2pd.models.layers import SwiGLU

# The only values that this file implements. Without a check, another value would silently compute something else.
FIXED_FIELDS: dict[str, Any] = {"hidden_act": "silu", "use_sliding_window": False}
# Fields of the hub's config.json that do not change inference. They are kept so that a saved config has every field.
CARRIED_FIELDS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "sliding_window": None,
    "max_window_layers": 28,
    "conplemenrary_mask": True,
}


class Fast_dLLM_QwenConfig(PretrainedConfig):
    """The fields of the hub's config.json.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "Fast_dLLM_Qwen"

    def __init__(
        self,
        vocab_size: int = 152064,
        hidden_size: int = 3584,
        intermediate_size: int = 18944,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int | None = 4,
        max_position_embeddings: int = 32768,
        rope_theta: float = 1000000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        bd_size: int = 32,
        mask_token_id: int = 151665,
        bos_token_id: int | None = 151643,
        eos_token_id: int = 151645,
        pad_token_id: int | None = None,
        tie_word_embeddings: bool = False,
        use_cache: bool = True,
        **other: Any,
    ) -> None:
        take_fields(self, other, FIXED_FIELDS, CARRIED_FIELDS, "Fast-dLLM v2")
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
            bd_size=bd_size,
        )
        check_divides(hidden_size, num_attention_heads)
        check_heads(num_attention_heads, heads, hidden_size // num_attention_heads)
        check_positive(rope_theta=rope_theta, rms_norm_eps=rms_norm_eps)
        check_full_attention(other.get("layer_types"), num_hidden_layers, "Fast-dLLM v2")
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
        self.bd_size = bd_size
        self.mask_token_id = mask_token_id
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **other,
        )


class Fast_dLLM_QwenForCausalLM(DecoderNetwork):
    """The network. Its logits at position i predict the token at i + 1."""

    config_class = Fast_dLLM_QwenConfig
    shifted_logits = True
    config: Fast_dLLM_QwenConfig

    def layer(self, number: int) -> DecoderLayer:
        config = self.config
        attention = Attention(config, self.head_width, bias=True, norm_eps=None)
        return DecoderLayer(config, attention, SwiGLU(config.hidden_size, config.intermediate_size))

    @property
    def causal_block(self) -> int:
        return self.config.bd_size
