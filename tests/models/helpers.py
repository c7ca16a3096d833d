"""Checkpoints in the hub's form, changes to them, and what loading says of those that it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from learn2pd.errors import UserError
from learn2pd.models.loading import load_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLADA_8B = {
    "activation_type": "silu",
    "alibi": False,
    "alibi_bias_max": 8.0,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "attention_layer_norm_with_affine": True,
    "auto_map": {
        "AutoConfig": "configuration_llada.LLaDAConfig",
        "AutoModel": "modeling_llada.LLaDAModelLM",
        "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
    },
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_dropout": 0.0,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "flash_attention": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "pad_token_id": 126081,
    "precision": "amp_bf16",
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
ILLADA_8B = LLADA_8B | {
    "n_kv_heads": 8,
    "mlp_hidden_size": 14336,
    "vocab_size": 155136,
    "embedding_size": 155136,
    "max_sequence_length": 8192,
    "weight_tying": True,
    "mask_token_id": 5,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
MASK = 5


def hub_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the hub's checkpoints, written out by hand."""
    width, inner = config["d_model"], config["mlp_hidden_size"]
    kv_width = width // config["n_heads"] * config["n_kv_heads"]
    shapes = {"wte.weight": (config["embedding_size"], width), "ln_f.weight": (width,)}
    if not config["weight_tying"]:
        shapes["ff_out.weight"] = (config["embedding_size"], width)
    for number in range(config["n_layers"]):
        block = {
            "q_proj.weight": (width, width),
            "k_proj.weight": (kv_width, width),
            "v_proj.weight": (kv_width, width),
            "attn_out.weight": (width, width),
            "ff_proj.weight": (inner, width),
            "up_proj.weight": (inner, width),
            "ff_out.weight": (width, inner),
            "attn_norm.weight": (width,),
            "ff_norm.weight": (width,),
        }
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    return {f"model.transformer.{name}": shape for name, shape in shapes.items()}


def write_checkpoint(folder, tokenizer, **changes):
    """A small checkpoint in the hub's form, whose code must not run.

    Its mask token has another id than the tokenizer's.
    """
    config = (
        ILLADA_8B
        | {
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "mlp_hidden_size": 48,
            "vocab_size": len(tokenizer),
            "embedding_size": len(tokenizer),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | changes
    )
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_llada.py", "modeling_llada.py"):
        (folder / name).write_text("raise SystemExit('remote code was run')")
    torch.manual_seed(0)
    tensors = {
        name: torch.randn(shape) * 0.3 + float("norm" in name or "ln_f" in name)
        for name, shape in hub_shapes(config).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def edit_json(path, **changes):
    """Change fields of a JSON file; a field that becomes `...` is taken out."""
    fields = json.loads(path.read_text())
    fields.update(changes)
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))


def edit_weights(folder, change):
    """Let a function change the tensors of a checkpoint, by name, and write them back."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(path, **options) -> str:
    """The one line that a failed load shows."""
    with pytest.raises(UserError) as error:
        load_model(str(path), **({"device": "cpu"} | options))
    line = str(error.value)
    assert "\n" not in line
    assert line
    return line
