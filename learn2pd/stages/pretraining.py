"""Pretrain: the embedded dLLM, or the autoregressive model that checks its drafts, trained and exported in the hub's layout."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from learn2pd.config import PretrainConfig, RunConfig
from learn2pd.errors import UserError
from learn2pd.evaluation import report
from learn2pd.evaluation.tasks import Task, build_task
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.tiny_tokenizer import kept_tokenizer, save_tokenizer, train_tokenizer
from learn2pd.training.canvases import CanvasData, CanvasStream, corpus
from learn2pd.training.causal import CausalTraining
from learn2pd.training.dllm import DiffusionTraining
from learn2pd.training.running import LanguageTraining, Schedule, train_language_model


def pretrain_dllm(options: PretrainConfig, tasks: list[Task], folder: Path, export: Path, seed: int) -> dict[str, float]:
    """Train the embedded dLLM in `folder`, from nothing or from the weights and tokenizer of `options.init_from`."""
    origin = options.init_from
    tokenizer = kept_tokenizer(folder / "tokenizer") or (AutoTokenizer.from_pretrained(origin) if origin else None)
    tokenizer = tokenizer or train_tokenizer(corpus(tasks, seed), options.vocab_size, options.max_sequence_length)
    config = LLaDAConfig(
        d_model=options.d_model,
        n_layers=options.n_layers,
        n_heads=options.n_heads,
        mlp_hidden_size=options.mlp_hidden_size,
        vocab_size=options.vocab_size,
        max_sequence_length=options.max_sequence_length,
        rope_theta=options.rope_theta,
        mask_token_id=int(tokenizer.mask_token_id),
        eos_token_id=int(tokenizer.eos_token_id),
        architectures=["LLaDAModelLM"],
    )
    model = LLaDAModelLM.from_pretrained(origin, config=config) if origin else LLaDAModelLM(config)
    return _train(DiffusionTraining(model, schedule_of(options)), model, tokenizer, options, tasks, folder, export, seed)


def pretrain_verifier(options: PretrainConfig, tasks: list[Task], folder: Path, export: Path, seed: int) -> dict[str, float]:
    """Train an autoregressive Llama with the tokenizer of `options.init_from`, the dLLM that it is to check."""
    if not options.init_from:
        raise UserError("pretrain.init_from is not set: pretrain.kind=verifier needs the folder of the dLLM whose tokenizer it shares")
    tokenizer = AutoTokenizer.from_pretrained(options.init_from)
    config = LlamaConfig(
        hidden_size=options.d_model,
        num_hidden_layers=options.n_layers,
        num_attention_heads=options.n_heads,
        intermediate_size=options.mlp_hidden_size,
        vocab_size=options.vocab_size,
        max_position_embeddings=options.max_sequence_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=int(tokenizer.eos_token_id),
        pad_token_id=int(tokenizer.eos_token_id),
    )
    model = LlamaForCausalLM(config)
    return _train(CausalTraining(model, schedule_of(options)), model, tokenizer, options, tasks, folder, export, seed)


def schedule_of(options: PretrainConfig) -> Schedule:
    return Schedule(
        total_steps=options.total_steps,
        warmup_steps=options.warmup_steps,
        decay_share=options.decay_share,
        muon_lr=options.muon_lr,
        adam_lr=options.adam_lr,
        weight_decay=options.weight_decay,
        precision=options.precision,
        checkpoint_every_steps=options.checkpoint_every_steps,
        validate_every_steps=options.validate_every_steps,
    )


def _train(
    module: LanguageTraining,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: PretrainConfig,
    tasks: list[Task],
    folder: Path,
    export: Path,
    seed: int,
) -> dict[str, float]:
    save_tokenizer(tokenizer, folder / "tokenizer")
    stream = functools.partial(
        CanvasStream, tasks, tokenizer, options.train_length, long_share=options.long_share, prefix_share=options.prefix_share, seed=seed
    )
    figures = train_language_model(module, CanvasData(stream), folder)
    model.save_pretrained(export)
    save_tokenizer(tokenizer, export)
    return figures


PRETRAININGS: dict[str, Callable[[PretrainConfig, list[Task], Path, Path, int], dict[str, float]]] = {
    "dllm": pretrain_dllm,
    "verifier": pretrain_verifier,
}


def stage_pretrain(config: RunConfig, output: Path) -> dict[str, Any]:
    """Train an embedded model, the dLLM or the verifier, and export it in the hub's layout."""
    tasks = [build_task(name) for name in config.data.tasks]
    export, folder = Path(config.pretrain.export_path), output / "pretrain"
    figures = PRETRAININGS[config.pretrain.kind](config.pretrain, tasks, folder, export, config.seed)
    logs = sorted((folder / "logs").glob("*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    report.plot_losses(logs, export / "loss.png", f"Training of {export.name}")
    return figures
