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

from transformers import Qwen2TokenizerFast

from learn2pd.models.decoder import Attention, DecoderLayer, DecoderNetwork
from learn2pd.models.fields import DecoderConfig
from learn2pd.models.layers import SwiGLU


class DreamConfig(DecoderConfig):
    """The fields of the hub's config.json.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "Dream"
    family = "Dream"
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131072,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "mask_token_id": 151666,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    fixed: ClassVar[dict[str, Any]] = {
        "hidden_act": "silu",
        "use_sliding_window": False,
        "use_mrope": False,
        "tie_word_embeddings": False,
    }
    carried: ClassVar[dict[str, Any]] = {
        "attention_dropout": 0.0,
        "sliding_window": None,
        "max_window_layers": 28,
        "full_attn_mask": True,
    }


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
