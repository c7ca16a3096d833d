"""Fast-dLLM v2 as a transformers model: the hub's fields, tensor names and arithmetic, without its remote code.

Fast-dLLM v2 (Wu et al. 2025, arXiv 2509.26328) is Qwen2.5 with block-causal attention: a token sees its own block and
the blocks before it, and blocks are counted from the first token of the prompt. It keeps the alignment of the
autoregressive model: the output at position i predicts the token at i + 1.

Deviations from the hub's modelling file: it shifts the outputs inside the slice that it forwards, so that the first
token of a slice is predicted by itself; here the caller shifts them, and the first token of a block is predicted by the
last token of the block before. The rotation is computed in float32 whatever the type of the weights.
"""

from __future__ import annotations

from typing import Any, ClassVar

from learn2pd.models.decoder import Attention, DecoderLayer, DecoderNetwork
from learn2pd.models.fields import DecoderConfig
from learn2pd.models.layers import SwiGLU


class Fast_dLLM_QwenConfig(DecoderConfig):
    """The fields of the hub's config.json.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "Fast_dLLM_Qwen"
    family = "Fast-dLLM v2"
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "bd_size": 32,
        "mask_token_id": 151665,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    fixed: ClassVar[dict[str, Any]] = {"hidden_act": "silu", "use_sliding_window": False}
    carried: ClassVar[dict[str, Any]] = {
        "attention_dropout": 0.0,
        "sliding_window": None,
        "max_window_layers": 28,
        "conplemenrary_mask": True,
    }


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
