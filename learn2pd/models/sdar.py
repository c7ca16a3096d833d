"""SDAR as transformers models: the hub's configuration fields, tensor names and arithmetic, without its remote code.

SDAR (Cheng et al. 2025, arXiv 2510.06303) is Qwen3 with block-causal attention: a token sees its own block and the
blocks before it, and blocks are counted from the first token of the prompt. Queries and keys have a norm over each
head, and the width of a head is a field of its own. The dense models have model_type `sdar`. `sdar_moe` is Qwen3's
mixture of experts: a softmax over all experts, of which the best few are taken and their weights divided by their sum.

Deviations from the hub's modelling file: it needs flash-attn and a mask that the caller builds; here a mask is built
where the caller gives none. The rotation is computed in float32 whatever the type of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PretrainedConfig

from learn2pd.models.decoder import Attention, DecoderLayer, DecoderNetwork
from learn2pd.models.experts import MixtureOfExperts, best_of_softmax
from learn2pd.models.fields import (
    check_experts,
    check_full_attention,
    check_heads,
    check_positive,
    check_whole,
    plain_rotation,
    take_fields,
)
from learn2pd.models.layers import SwiGLU

# The only values that this file implements. Without a check, another value would silently compute something else.
FIXED_FIELDS: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
# Fields of the hub's config.json that do not change inference. They are kept so that a saved config has every field.
CARRIED_FIELDS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "sliding_window": None,
    "max_window_layers": 28,
    "fuse_cross_entropy": True,
}
CARRIED_OF_EXPERTS: dict[str, Any] = {"output_router_logits": False, "router_aux_loss_coef": 0.001}


class SDARConfig(PretrainedConfig):
    """The fields of the hub's config.json.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "sdar"

    def __init__(
        self,
        vocab_size: int = 151936,
        hidden_size: int = 4096,
        intermediate_size: int = 12288,
        num_hidden_layers: int = 36,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = 8,
        head_dim: int | None = 128,
        max_position_embeddings: int = 32768,
        rope_theta: float = 1000000.0,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        block_size: int = 4,
        mask_token_id: int = 151669,
        bos_token_id: int | None = 151643,
        eos_token_id: int = 151643,
        pad_token_id: int | None = 151643,
        tie_word_embeddings: bool = False,
        use_cache: bool = False,
        **other: Any,
    ) -> None:
        take_fields(self, other, FIXED_FIELDS, CARRIED_FIELDS, "SDAR")
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
            block_size=block_size,
        )
        head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        check_whole(head_dim=head_dim)
        check_heads(num_attention_heads, heads, head_dim)
        check_positive(rope_theta=rope_theta, rms_norm_eps=rms_norm_eps)
        check_full_attention(other.get("layer_types"), num_hidden_layers, "SDAR")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = heads
        self.head_dim = head_dim
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.block_size = block_size
        self.mask_token_id = mask_token_id
        self.use_cache = use_cache
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **other,
        )


class SDARMoeConfig(SDARConfig):
    """The fields of the hub's config.json of a mixture of experts.

    Raises:
        ValueError: As for `SDARConfig`.
    """

    model_type = "sdar_moe"

    def __init__(
        self,
        hidden_size: int = 2048,
        intermediate_size: int = 6144,
        num_hidden_layers: int = 48,
        num_key_value_heads: int | None = 4,
        moe_intermediate_size: int = 768,
        num_experts: int = 128,
        num_experts_per_tok: int = 8,
        norm_topk_prob: bool = True,
        decoder_sparse_step: int = 1,
        mlp_only_layers: Sequence[int] | None = None,
        **other: Any,
    ) -> None:
        take_fields(self, other, {}, CARRIED_OF_EXPERTS, "SDAR")
        check_whole(
            moe_intermediate_size=moe_intermediate_size,
            num_experts=num_experts,
            num_experts_per_tok=num_experts_per_tok,
            decoder_sparse_step=decoder_sparse_step,
        )
        check_experts(num_experts_per_tok, num_experts)
        self.moe_intermediate_size = moe_intermediate_size
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.norm_topk_prob = norm_topk_prob
        self.decoder_sparse_step = decoder_sparse_step
        self.mlp_only_layers = list(mlp_only_layers or ())
        super().__init__(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers,
            num_key_value_heads=num_key_value_heads,
            **other,
        )


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
