"""LLaDA as a transformers model: the hub's configuration fields, tensor names and arithmetic, without its remote code.

LLaDA (Nie et al. 2025, arXiv 2502.09992) is a Llama-like bidirectional transformer. It has an RMSNorm before the
attention and before the SwiGLU feed-forward, and rotary positions; it has no biases and no causal mask. A configuration
with `n_kv_heads < n_heads` has grouped-query attention.

Deviations from the hub's modelling file: the network respects the attention mask, which the original ignores, and the
caller may give the positions of each row, so that a left-padded row gives the same outputs as the row alone. The
original derives from OLMo and has several kinds of blocks. Only its `llama` block exists here; a configuration that
asks for another kind (ALiBi, biases, layer norm on keys) is refused by name.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from learn2pd.models.fields import check_positive, check_whole, plain_rotation
from learn2pd.models.layers import LayerCall, RMSNorm
from learn2pd.models.network import DiffusionNetwork, Parts

# The values that the `llama` block fixes. Without a check, another value would silently compute something else.
FIXED_FIELDS: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "rope": True,
    "scale_logits": False,
}
# Fields of the hub's config.json that do not change inference. They are kept so that a saved config has every field.
CARRIED_FIELDS: dict[str, Any] = {
    "alibi_bias_max": 8.0,
    "attention_dropout": 0.0,
    "attention_layer_norm_with_affine": True,
    "embedding_dropout": 0.0,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rope_full_precision": True,
}


class LLaDAConfig(PretrainedConfig):
    """The fields of the hub's config.json.

    Raises:
        ValueError: A field has a value that this file does not implement; the message names the field.
    """

    model_type = "llada"
    attribute_map: ClassVar = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_sequence_length",
        "initializer_range": "init_std",
    }

    def __init__(
        self,
        d_model: int = 4096,
        n_layers: int = 32,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        mlp_hidden_size: int = 12288,
        vocab_size: int = 126464,
        embedding_size: int | None = None,
        max_sequence_length: int = 4096,
        rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5,
        init_std: float = 0.02,
        weight_tying: bool = False,
        mask_token_id: int = 126336,
        eos_token_id: int = 126081,
        pad_token_id: int | None = None,
        use_cache: bool = False,
        **other: Any,
    ) -> None:
        for name, value in FIXED_FIELDS.items():
            if other.pop(name, value) != value:
                raise ValueError(
                    f"config.json: {name} differs from {value!r}, the only value the llama block of LLaDA computes"
                )
            setattr(self, name, value)
        for name, value in CARRIED_FIELDS.items():
            setattr(self, name, other.pop(name, value))
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        embedding_size = vocab_size if embedding_size is None else embedding_size
        rope_theta = plain_rotation(other, rope_theta)
        check_whole(
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            mlp_hidden_size=mlp_hidden_size,
            vocab_size=vocab_size,
            embedding_size=embedding_size,
            max_sequence_length=max_sequence_length,
        )
        check_positive(rope_theta=rope_theta, rms_norm_eps=rms_norm_eps)
        if embedding_size < vocab_size:
            raise ValueError(
                f"config.json: embedding_size={embedding_size}, vocab_size={vocab_size}: every token needs an embedding"
            )
        if d_model % (2 * n_heads) or n_heads % n_kv_heads:
            raise ValueError(
                f"config.json: d_model={d_model}, n_heads={n_heads}, n_kv_heads={n_kv_heads}: "
                "d_model must divide into n_heads even parts and n_heads into n_kv_heads groups"
            )
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.mlp_hidden_size = mlp_hidden_size
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.max_sequence_length = max_sequence_length
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.init_std = init_std
        self.weight_tying = weight_tying
        self.mask_token_id = mask_token_id
        self.use_cache = use_cache
        other.pop("tie_word_embeddings", None)
        super().__init__(
            eos_token_id=eos_token_id,
            pad_token_id=eos_token_id if pad_token_id is None else pad_token_id,
            tie_word_embeddings=weight_tying,
            **other,
        )


class LLaDABlock(nn.Module):
    """One layer: attention and feed-forward, each behind a norm."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.head_width = config.d_model // config.n_heads
        kv_width = config.n_kv_heads * self.head_width
        self.q_proj = nn.Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.attn_out = nn.Linear(config.d_model, config.d_model, bias=False)
        self.ff_proj = nn.Linear(config.d_model, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, config.d_model, bias=False)
        self.attn_norm = RMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_norm = RMSNorm(config.d_model, config.rms_norm_eps)

    def forward(self, x: Tensor, call: LayerCall) -> Tensor:
        """Run the layer.

        Args:
            x: [R, Q, D].
            call: What the layer needs beside it.

        Returns:
            [R, Q or M, D].
        """
        normed = self.attn_norm(x)
        queried = call.at_asked(normed)
        q, k, v = (
            project(columns).unflatten(-1, (-1, self.head_width))
            for project, columns in ((self.q_proj, queried), (self.k_proj, normed), (self.v_proj, normed))
        )
        x = call.at_asked(x) + self.attn_out(call.attend(q, k, v))
        normed = self.ff_norm(x)
        return x + self.ff_out(functional.silu(self.ff_proj(normed)) * self.up_proj(normed))


class LLaDATransformer(nn.Module):
    """Holds the modules under the hub's names: `wte`, `blocks`, `ln_f`, and `ff_out` where embeddings are not tied."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.embedding_size, config.d_model)
        self.blocks = nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        if not config.weight_tying:
            self.ff_out = nn.Linear(config.d_model, config.embedding_size, bias=False)


class LLaDABackbone(nn.Module):
    """Holds the transformer under the hub's name `transformer`."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.transformer = LLaDATransformer(config)


class LLaDAModelLM(DiffusionNetwork):
    """The network. Its logits at position i predict the token at i. With `weight_tying`, the embedding is the head."""

    config_class = LLaDAConfig
    head_name = "model.transformer.ff_out.weight"
    _no_split_modules: ClassVar = ["LLaDABlock"]
    config: LLaDAConfig

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = LLaDABackbone(config)
        self.post_init()

    def parts(self) -> Parts:
        transformer = self.model.transformer
        return Parts(transformer.wte, transformer.blocks, transformer.ln_f)

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.transformer.wte = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer.wte if self.config.weight_tying else self.model.transformer.ff_out
