"""LLaDA-MoE as a transformers model: the hub's fields, tensor names and arithmetic, without its remote code.

LLaDA-MoE (inclusionAI 2025, LLaDA-MoE-7B-A1B) is a bidirectional mixture of experts with the names of OLMoE. Its
config.json says model_type `llada`, as LLaDA's own does, so that the two are told apart by `architectures`. The router
takes the best experts of a softmax over all of them, and does not divide their weights by their sum.

Deviations from the hub's modelling file: the caller may give the positions of each row, and keys and values can be
kept. As in that file, `norm_topk_prob` changes nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from learn2pd.models.decoder import Attention, DecoderLayer, DecoderNetwork
from learn2pd.models.experts import MixtureOfExperts, best_of_softmax
from learn2pd.models.fields import DecoderConfig, check_whole
from learn2pd.models.layers import SwiGLU


class LLaDAMoEConfig(DecoderConfig):
    """The fields of the hub's config.json.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "llada"
    family = "LLaDA-MoE"
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 157184,
        "hidden_size": 2048,
        "dense_intermediate_size": 8192,
        "expert_intermediate_size": 1024,
        "shared_expert_intermediate_size": None,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_layer_freq": None,
        "qk_layernorm": True,
        "max_position_embeddings": 8192,
        "rope_theta": 50000.0,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "mask_token_id": 156895,
        "eos_token_id": 156892,
        "pad_token_id": 156892,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    fixed: ClassVar[dict[str, Any]] = {
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
    carried: ClassVar[dict[str, Any]] = {
        "attention_dropout": 0.0,
        "norm_topk_prob": None,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.01,
    }

    def check(self, values: dict[str, Any], other: dict[str, Any]) -> None:
        super().check(values, other)
        if values["shared_expert_intermediate_size"] is not None:
            check_whole(shared_expert_intermediate_size=values["shared_expert_intermediate_size"])
        layers, given = values["num_hidden_layers"], values["moe_layer_freq"]
        frequency = [1] * layers if given is None else given
        if not isinstance(frequency, list | tuple) or len(frequency) != layers or {*frequency} - {0, 1}:
            raise ValueError(
                f"config.json: moe_layer_freq={given!r}, expected a 0 or 1 for each of the {layers} layers"
            )
        values["moe_layer_freq"] = list(frequency)


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
