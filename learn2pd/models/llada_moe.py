"""LLaDA-MoE as a transformers model: the hub's fields, tensor names and arithmetic, without its remote code.

LLaDA-MoE (inclusionAI 2025, LLaDA-MoE-7B-A1B) is a bidirectional mixture of experts with the names of OLMoE. Its
config.json says model_type `llada`, as LLaDA's own does, so that the two are told apart by `architectures`. The router
takes the best experts of a softmax over all of them, and does not divide their weights by their sum.

Deviations from the hub's modelling file: the caller may give the positions of each row, and keys and values can be
kept. As in that file, `norm_topk_prob` changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig

from learn2pd.models.decoder import Attention, DecoderLayer, DecoderNetwork
from learn2pd.models.experts import MixtureOfExperts, best_of_softmax
from learn2pd.models.fields import (
    check_divides,
    check_experts,
    check_heads,
    check_positive,
    check_whole,
    plain_rotation,
    take_fields,
)
from learn2pd.models.layers import SwiGLU

# The only values that this file implements. Without a check, another value would silently compute something else.
FIXED_FIELDS: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "clip_qkv": None,
    "partial_rotary_factor": 1,
    "moe_router_score_function": "softmax",
    "moe_router_enable_expert_bias": False,
    "router_num_group": None,
    "router_topk_group": None,
    "routed_scaling_factor": 1,
}
# Fields of the hub's config.json that do not change inference. They are kept so that a saved config has every field.
CARRIED_FIELDS: dict[str, Any] = {
    "attention_dropout": 0.0,
    "norm_topk_prob": None,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.01,
}


class LLaDAMoEConfig(PretrainedConfig):
    """The fields of the hub's config.json.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "llada"

    def __init__(
        self,
        vocab_size: int = 157184,
        hidden_size: int = 2048,
        dense_intermediate_size: int = 8192,
        expert_intermediate_size: int = 1024,
        shared_expert_intermediate_size: int | None = None,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 16,
        num_key_value_heads: int | None = 16,
        num_experts: int = 64,
        num_experts_per_tok: int = 8,
        moe_layer_freq: Sequence[int] | None = None,
        qk_layernorm: bool = True,
        max_position_embeddings: int = 8192,
        rope_theta: float = 50000.0,
        rms_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        mask_token_id: int = 156895,
        eos_token_id: int = 156892,
        pad_token_id: int | None = 156892,
        tie_word_embeddings: bool = False,
        use_cache: bool = False,
        **other: Any,
    ) -> None:
        take_fields(self, other, FIXED_FIELDS, CARRIED_FIELDS, "LLaDA-MoE")
        heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        rope_theta = plain_rotation(other, rope_theta)
        check_whole(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            dense_intermediate_size=dense_intermediate_size,
            expert_intermediate_size=expert_intermediate_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=heads,
            num_experts=num_experts,
            num_experts_per_tok=num_experts_per_tok,
            max_position_embeddings=max_position_embeddings,
        )
        if shared_expert_intermediate_size is not None:
            check_whole(shared_expert_intermediate_size=shared_expert_intermediate_size)
        check_divides(hidden_size, num_attention_heads)
        check_heads(num_attention_heads, heads, hidden_size // num_attention_heads)
        check_experts(num_experts_per_tok, num_experts)
        check_positive(rope_theta=rope_theta, rms_norm_eps=rms_norm_eps)
        frequency = [1] * num_hidden_layers if moe_layer_freq is None else moe_layer_freq
        if not isinstance(frequency, list | tuple) or len(frequency) != num_hidden_layers or {*frequency} - {0, 1}:
            raise ValueError(
                f"config.json: moe_layer_freq={moe_layer_freq!r}, expected a 0 or 1 for each of the "
                f"{num_hidden_layers} layers"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.dense_intermediate_size = dense_intermediate_size
        self.expert_intermediate_size = expert_intermediate_size
        self.shared_expert_intermediate_size = shared_expert_intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = heads
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.moe_layer_freq = list(frequency)
        self.qk_layernorm = qk_layernorm
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.mask_token_id = mask_token_id
        self.use_cache = use_cache
        super().__init__(
            eos_token_id=eos_token_id, pad_token_id=pad_token_id, tie_word_embeddings=tie_word_embeddings, **other
        )


class LLaDAMoEExperts(MixtureOfExperts):
    """The experts, and the shared expert where the configuration has one."""

    def __init__(self, config: LLaDAMoEConfig) -> None:
        gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        super().__init__(config.hidden_size, config.expert_intermediate_size, config.num_experts, gate)
        self.experts_per_token = config.num_experts_per_tok
        shared = config.shared_expert_intermediate_size
        self.shared_expert = None if shared is None else SwiGLU(config.hidden_size, shared)

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return best_of_softmax(logits, self.experts_per_token, normalise=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = super().forward(x)
        return mixed if self.shared_expert is None else mixed + self.shared_expert(x)


class LLaDAMoEModelLM(DecoderNetwork):
    """The network. Its logits at position i predict the token at i."""

    config_class = LLaDAMoEConfig
    mixes_experts = True
    config: LLaDAMoEConfig

    def layer(self, number: int) -> DecoderLayer:
        config = self.config
        norm_eps = config.rms_norm_eps if config.qk_layernorm else None
        attention = Attention(config, self.head_width, bias=False, norm_eps=norm_eps)
        if config.moe_layer_freq[number]:
            return DecoderLayer(config, attention, LLaDAMoEExperts(config))
        return DecoderLayer(config, attention, SwiGLU(config.hidden_size, config.dense_intermediate_size))
