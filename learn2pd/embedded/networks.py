"""The kinds of embedded models: for each one the untrained network, and the objective that it is trained by."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from learn2pd.embedded.config import EmbeddedConfig
from learn2pd.embedded.objectives import BlockDiffusion, MaskedDiffusion, NextToken, Objective
from learn2pd.embedded.training import CausalTraining, DiffusionTraining, LanguageTraining
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.sdar import SDARConfig, SDARForCausalLM


class Kind(NamedTuple):
    """A kind of embedded model.

    Attributes:
        build: Builds the untrained network of a configuration, ready to be trained, for a tokenizer.
        objective: Builds what the network is asked for.
        has_mask: Whether the tokenizer needs a mask token.
    """

    build: Callable[[EmbeddedConfig, PreTrainedTokenizerBase], LanguageTraining]
    objective: Callable[[EmbeddedConfig, PreTrainedTokenizerBase], Objective]
    has_mask: bool = True


def _vocab_size(config: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    return max(config.vocab_size, len(tokenizer))


def _llada(config: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase) -> LanguageTraining:
    sizes = config.network
    model = LLaDAModelLM(
        LLaDAConfig(
            d_model=sizes.d_model,
            n_layers=sizes.n_layers,
            n_heads=sizes.n_heads,
            mlp_hidden_size=sizes.mlp_hidden_size,
            vocab_size=_vocab_size(config, tokenizer),
            max_sequence_length=sizes.max_sequence_length,
            rope_theta=sizes.rope_theta,
            mask_token_id=int(tokenizer.mask_token_id),
            eos_token_id=int(tokenizer.eos_token_id),
            architectures=["LLaDAModelLM"],
        )
    )
    return DiffusionTraining(model, model.model.transformer.blocks, config.schedule)


def _masked_diffusion(_: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase) -> Objective:
    return MaskedDiffusion(int(tokenizer.mask_token_id), int(tokenizer.eos_token_id))


def _sdar(config: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase) -> LanguageTraining:
    sizes = config.network
    eot_id = int(tokenizer.eos_token_id)
    model = SDARForCausalLM(
        SDARConfig(
            hidden_size=sizes.d_model,
            num_hidden_layers=sizes.n_layers,
            num_attention_heads=sizes.n_heads,
            num_key_value_heads=sizes.n_heads,
            head_dim=sizes.d_model // sizes.n_heads,
            intermediate_size=sizes.mlp_hidden_size,
            vocab_size=_vocab_size(config, tokenizer),
            max_position_embeddings=sizes.max_sequence_length,
            rope_theta=sizes.rope_theta,
            block_size=sizes.block_size,
            tie_word_embeddings=True,
            mask_token_id=int(tokenizer.mask_token_id),
            bos_token_id=None,
            eos_token_id=eot_id,
            pad_token_id=eot_id,
            architectures=["SDARForCausalLM"],
        )
    )
    return DiffusionTraining(model, model.parts().layers, config.schedule)


def _block_diffusion(config: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase) -> Objective:
    ids = int(tokenizer.mask_token_id), int(tokenizer.eos_token_id)
    return BlockDiffusion(*ids, config.network.block_size, "grid")


def _llama(config: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase) -> LanguageTraining:
    sizes = config.network
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=sizes.d_model,
            num_hidden_layers=sizes.n_layers,
            num_attention_heads=sizes.n_heads,
            intermediate_size=sizes.mlp_hidden_size,
            vocab_size=_vocab_size(config, tokenizer),
            max_position_embeddings=sizes.max_sequence_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=int(tokenizer.eos_token_id),
            pad_token_id=int(tokenizer.eos_token_id),
        )
    )
    return CausalTraining(model, model.model.layers, config.schedule)


def _next_token(_: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase) -> Objective:
    return NextToken(int(tokenizer.eos_token_id))


KINDS = {
    "llada": Kind(_llada, _masked_diffusion),
    "sdar": Kind(_sdar, _block_diffusion),
    "llama": Kind(_llama, _next_token, has_mask=False),
}
