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

from typing import Any

from transformers import PretrainedConfig, Qwen2TokenizerFast

from learn2pd.models.decoder import Attention, DecoderLayer, DecoderNetwork
from learn2pd.models.fields import check_full_attention, check_positive, check_whole, plain_rotation, take_fields
from learn2pd.models.layers import SwiGLU

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
        take_fields(self, other, FIXED_FIELDS, CARRIED_FIELDS, "Dream")
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
        check_full_attention(other.get("layer_types"), num_hidden_layers, "Dream")
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


class DreamModel(DecoderNetwork):
    """The network. Its logits at position i predict the token at i + 1."""

    config_class = DreamConfig
    shifted_logits = True
    config: DreamConfig

    def layer(self, number: int) -> DecoderLayer:
        config = self.config
        attention = Attention(config, self.head_width, bias=True, norm_eps=None)
        return DecoderLayer(config, attention, SwiGLU(config.hidden_size, config.intermediate_size))
