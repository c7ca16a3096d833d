"""SDAR as transformers models: the hub's configuration fields, tensor names and arithmetic, without its remote code.

SDAR (Cheng et al. 2025, arXiv 2510.06303) is Qwen3 with block-causal attention: a token sees its own block and the
blocks before it, and blocks are counted from the first token of the prompt. Queries and keys have a norm over each
head, and the width of a head is a field of its own. The dense models have model_type `sdar`. `sdar_moe` is Qwen3's
mixture of experts: a softmax over all experts, of which the best few are taken and their weights divided by their sum.

Deviations from the hub's modelling file: it needs flash-attn and a mask that the caller builds; here a mask is built
where the caller gives none. The rotation is computed in float32 whatever the type of the weights.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from learn2pd.models.decoder import Attention, DecoderLayer, DecoderNetwork
from learn2pd.models.experts import MixtureOfExperts, best_of_softmax
from learn2pd.models.fields import DecoderConfig
from learn2pd.models.layers import SwiGLU


class SDARConfig(DecoderConfig):
    """The fields of the hub's config.json.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "sdar"
    family = "SDAR"
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "block_size": 4,
        "mask_token_id": 151669,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "pad_token_id": 151643,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    fixed: ClassVar[dict[str, Any]] = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
    carried: ClassVar[dict[str, Any]] = {
        "attention_dropout": 0.0,
        "sliding_window": None,
        "max_window_layers": 28,
        "fuse_cross_entropy": True,
    }


class SDARMoeConfig(SDARConfig):
    """The fields of the hub's config.json of a mixture of experts.

    Raises:
        ValueError: As for `SDARConfig`.
    """

    model_type = "sdar_moe"
    defaults: ClassVar[dict[str, Any]] = SDARConfig.defaults | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
    }
    carried: ClassVar[dict[str, Any]] = SDARConfig.carried | {
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }

    def check(self, values: dict[str, Any], other: dict[str, Any]) -> None:
        super().check(values, other)
        values["mlp_only_layers"] = list(values["mlp_only_layers"] or ())


class SDARForCausalLM(DecoderNetwork):
    """The dense network. Its logits at position i predict the token at i."""

    config_class: ClassVar[type[SDARConfig]] = SDARConfig
    config: SDARConfig

    def layer(self, number: int) -> DecoderLayer:
        config = self.config
        attention = Attention(config, config.head_dim, bias=False, norm_eps=config.rms_norm_eps)
        return DecoderLayer(config, attention, self.feed_forward(number))

    def feed_forward(self, number: int) -> nn.Module:
        """Build the feed-forward part of one layer.

        Args:
            number: The number of the layer, counted from 0.
        """
        return SwiGLU(self.config.hidden_size, self.config.intermediate_size)

    @property
    def head_width(self) -> int:
        return self.config.head_dim

    @property
    def causal_block(self) -> int:
        return self.config.block_size


class SDARExperts(MixtureOfExperts):
    """The experts of Qwen3."""

    def __init__(self, config: SDARMoeConfig) -> None:
        gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        super().__init__(config.hidden_size, config.moe_intermediate_size, config.num_experts, gate)
        self.experts_per_token = config.num_experts_per_tok
        self.normalise = config.norm_topk_prob

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return best_of_softmax(logits, self.experts_per_token, self.normalise)


class SDARMoeForCausalLM(SDARForCausalLM):
    """The mixture of experts."""

    config_class = SDARMoeConfig
    mixes_experts = True
    config: SDARMoeConfig

    def feed_forward(self, number: int) -> nn.Module:
        sparse = number not in self.config.mlp_only_layers and not (number + 1) % self.config.decoder_sparse_step
        return SDARExperts(self.config) if sparse else super().feed_forward(number)
