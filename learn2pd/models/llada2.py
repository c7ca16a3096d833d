"""LLaDA2.0 and 2.1 as a transformers model: the hub's fields, tensor names and arithmetic, without its remote code.

LLaDA2 (inclusionAI 2025 and 2026, arXiv 2512.15745 and 2602.08676) is a mixture of experts with block-causal attention:
a token sees its own block and the blocks before it, and blocks are counted from the first token of the prompt. Queries,
keys and values come from one projection; queries and keys have a norm over each head, and only the first features of a
head are rotated. The first layers are dense.

The router scores each expert by a sigmoid and adds a bias for the choice alone. Of each group of experts it adds up the
two best biased scores, keeps the groups with the largest sums, and chooses the best experts inside them. Their weights
are the scores without bias, divided by their sum and multiplied by `routed_scaling_factor`. A shared expert is added.

Deviations from the hub's modelling file: a mask is built where the caller gives none; the rotation is computed in
float32 whatever the type of the weights; the hub's config.json does not state the length of a block, and here it is the
field `block_size`, which is 32 where the file leaves it out.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from learn2pd.models.experts import MixtureOfExperts
from learn2pd.models.fields import DecoderConfig
from learn2pd.models.layers import LayerCall, RMSNorm, SwiGLU
from learn2pd.models.network import DiffusionNetwork, Parts


class LLaDA2MoeConfig(DecoderConfig):
    """The fields of the hub's config.json, and `block_size`.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "llada2_moe"
    family = "LLaDA2"
    defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 157184,
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 20,
        "first_k_dense_replace": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 32768,
        "rope_theta": 600000.0,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "block_size": 32,
        "mask_token_id": 156895,
        "eos_token_id": 156892,
        "pad_token_id": 156892,
        "tie_word_embeddings": False,
        "use_cache": False,
    }
    fixed: ClassVar[dict[str, Any]] = {
        "hidden_act": "silu",
        "moe_router_enable_expert_bias": True,
        "norm_head": False,
        "norm_softmax": False,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 0,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "use_bias": False,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "use_rmsnorm": True,
        "use_sliding_window": False,
        "using_split_qkv_in_self_attention": False,
    }
    carried: ClassVar[dict[str, Any]] = {
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "max_window_layers": 20,
        "output_dropout": 0.0,
        "output_router_logits": False,
        "sliding_window": 4096,
    }
    may_be_zero = ("num_shared_experts", "first_k_dense_replace")

    def check(self, values: dict[str, Any], other: dict[str, Any]) -> None:
        super().check(values, other)
        groups, kept = values["n_group"], values["topk_group"]
        _check_groups(values["num_experts"], values["num_experts_per_tok"], groups, kept)
        share, head_dim = values["partial_rotary_factor"], values["head_dim"]
        rotary = head_dim * share
        if rotary > head_dim or rotary % 2 or other.pop("rotary_dim", rotary) != rotary:
            raise ValueError(
                f"config.json: partial_rotary_factor={share}, head_dim={head_dim}: "
                "their product must be an even number of at most head_dim, and rotary_dim the same number"
            )


def _check_groups(experts: int, per_token: int, groups: int, kept: int) -> None:
    """Refuse groups of experts among which a token cannot choose.

    Raises:
        ValueError: The message names the fields.
    """
    size = experts // groups
    if experts % groups or size < 2 or kept > groups or kept * size < per_token:
        raise ValueError(
            f"config.json: num_experts={experts}, n_group={groups}, topk_group={kept}, "
            f"num_experts_per_tok={per_token}: the experts must divide into n_group groups "
            "of at least 2, of which topk_group hold enough to choose from"
        )


class LLaDA2Attention(nn.Module):
    """Grouped-query attention with one projection, norms of queries and keys, and partial rotation."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.parts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.query_key_value = nn.Linear(config.hidden_size, sum(self.parts) * config.head_dim, bias=False)
        self.query_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.key_layernorm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.dense = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x: Tensor, call: LayerCall) -> Tensor:
        q, k, v = self.query_key_value(x).unflatten(-1, (sum(self.parts), -1)).split(self.parts, dim=2)
        if call.asked is not None:  # otherwise the flattening would copy
            q = call.at_asked(q.flatten(2)).unflatten(-1, (self.parts[0], -1))
        return self.dense(call.attend(self.query_layernorm(q), self.key_layernorm(k), v))


class LLaDA2Gate(nn.Module):
    """The router's weight, and the bias by which the training balanced the choice of experts."""

    expert_bias: Tensor

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.num_experts))


class LLaDA2Experts(MixtureOfExperts):
    """Experts in groups, and shared experts."""

    gate: LLaDA2Gate

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        width = config.hidden_size
        super().__init__(width, config.moe_intermediate_size, config.num_experts, LLaDA2Gate(config))
        shared = config.num_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(width, shared) if shared else None
        self.experts_per_token = config.num_experts_per_tok
        self.groups = config.n_group
        self.kept_groups = config.topk_group
        self.scale = config.routed_scaling_factor

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.sigmoid()
        grouped = (scores + self.gate.expert_bias).unflatten(-1, (self.groups, -1))  # [N, groups, experts of a group]
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.kept_groups, dim=-1).indices
        closed = torch.ones(grouped.shape[:2], dtype=torch.bool, device=logits.device).scatter_(-1, best, False)
        routed = (
            grouped.masked_fill(closed[..., None], -torch.inf).flatten(1).topk(self.experts_per_token, dim=-1).indices
        )
        weights = scores.gather(-1, routed)
        if self.experts_per_token > 1:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return routed, weights * self.scale

    def forward(self, x: Tensor) -> Tensor:
        mixed = super().forward(x)
        return mixed if self.shared_experts is None else mixed + self.shared_experts(x)


class LLaDA2Layer(nn.Module):
    """One layer: attention and feed-forward, each behind a norm."""

    def __init__(self, config: LLaDA2MoeConfig, number: int) -> None:
        super().__init__()
        dense = number < config.first_k_dense_replace
        self.attention = LLaDA2Attention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size) if dense else LLaDA2Experts(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, call: LayerCall) -> Tensor:
        """Run the layer, as `decoder.DecoderLayer` does."""
        mixed = self.attention(self.input_layernorm(x), call)
        x = call.at_asked(x) + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class LLaDA2Backbone(nn.Module):
    """Holds the modules under the hub's names: `word_embeddings`, `layers`, `norm`."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LLaDA2Layer(config, number) for number in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LLaDA2MoeModelLM(DiffusionNetwork):
    """The network. Its logits at position i predict the token at i.

    With `tie_word_embeddings`, the embedding is the head.
    """

    config_class = LLaDA2MoeConfig
    mixes_experts = True
    _no_split_modules: ClassVar = ["LLaDA2Layer"]
    config: LLaDA2MoeConfig

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__(config)
        self.model = LLaDA2Backbone(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LLaDA2Gate):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.expert_bias)

    def parts(self) -> Parts:
        return Parts(self.model.word_embeddings, self.model.layers, self.model.norm)

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.word_embeddings = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.model.word_embeddings if self.config.tie_word_embeddings else self.lm_head

    @property
    def head_width(self) -> int:
        return self.config.head_dim

    @property
    def rotary_width(self) -> int:
        return int(self.config.head_dim * self.config.partial_rotary_factor)

    @property
    def causal_block(self) -> int:
        return self.config.block_size
