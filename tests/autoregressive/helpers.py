"""Tiny random autoregressive models, and decoding with them written down."""

from __future__ import annotations

import copy

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from learn2pd.autoregressive.model import CausalModel, causal_model

EOT = 0
SIZES = {"vocab_size": 40, "eos_token_id": EOT, "bos_token_id": EOT, "initializer_range": 0.2}
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA |= {"intermediate_size": 64, "max_position_embeddings": 96} | SIZES
FAMILIES = {
    "llama": lambda **changes: LlamaForCausalLM(LlamaConfig(**LLAMA | changes)),
    "qwen2": lambda **changes: Qwen2ForCausalLM(Qwen2Config(**LLAMA | changes)),
    "gpt2": lambda **changes: GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=96, **SIZES | changes)
    ),
}


def tiny_network(family: str = "llama", seed: int = 0, **changes):
    """A random network in float64, so that no test hangs on a tie that a batch rounds otherwise."""
    torch.manual_seed(seed)
    return FAMILIES[family](**changes).eval().double()


def tiny_pair(family: str = "llama", noise: float = 0.05, **changes) -> tuple[CausalModel, CausalModel]:
    """A target, and a draft whose weights are the target's with noise added."""
    target = tiny_network(family, **changes)
    draft = copy.deepcopy(target)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return causal_model(target, None, "target"), causal_model(draft, None, "draft", "draft")


def greedy(model: CausalModel, prompt: list[int], gen_length: int, stops: bool = True) -> list[int]:
    """The answer of a model with one whole forward a token, filled up with end-of-text."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + gen_length:
        with torch.inference_mode():
            tokens.append(int(model.network(torch.tensor([tokens])).logits[0, -1].argmax()))
        if stops and tokens[-1] == EOT:
            break
    return tokens[len(prompt) :] + [EOT] * (len(prompt) + gen_length - len(tokens))
