"""Train an embedded model from nothing and export it in the hub's layout: `python train.py config=tiny_dllm` and its neighbours."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from learn2pd.cli.stages.run_folder import claimed, open_output, write_metrics
from learn2pd.data.reading import read_records
from learn2pd.data.tasks.slots import SlotsTask
from learn2pd.embedded.config import NETWORKS, OBJECTIVES, EmbeddedConfig, ExamplesConfig
from learn2pd.embedded.examples import ExampleSource, ProblemExamples, RequestExamples
from learn2pd.embedded.losses import plot_losses, read_losses, write_losses
from learn2pd.embedded.objectives import BlockDiffusion, MaskedDiffusion, NextToken, Objective
from learn2pd.embedded.stream import BatchStream, Leg, StreamData
from learn2pd.embedded.tokenizer import save_tokenizer, train_tokenizer
from learn2pd.embedded.training import CausalTraining, DiffusionTraining, LanguageTraining, train_language_model
from learn2pd.errors import UserError, suggest
from learn2pd.files import write_json
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.registry import GENERATED_TASKS, build_task

log = logging.getLogger(__name__)
TOKENIZER_FILE = "corpus.json"


def run(config: EmbeddedConfig) -> None:
    """Train in the output_dir of a configuration, from where an interrupted run stopped; the figures go to metrics.json there.

    Raises:
        UserError: anything the user can mend.
    """
    if config.resume:
        raise UserError("resume=true: the training of an embedded model goes on by itself, and only with the configuration it began with")
    torch.set_num_threads(config.threads)
    lightning.seed_everything(config.seed, verbose=False)
    with claimed(config) as output:
        open_output(config, output)
        write_metrics(output, "pretrain", pretrain(config, output))


def pretrain(config: EmbeddedConfig, output: Path) -> dict[str, Any]:
    """Train the embedded model of a configuration in output_dir/pretrain and export it to `export_path`.

    Raises:
        UserError: data, tokenizer or an option does not fit, by name.
    """
    _check_choice("network.kind", config.network.kind, NETWORKS)
    _check_choice("objective", config.objective, OBJECTIVES)
    if (config.network.kind == "llama") != (config.objective == "next_token"):
        raise UserError(f"objective={config.objective}: network.kind=llama is trained by next_token, and llada by masked_diffusion")
    folder, export = output / "pretrain", Path(config.export_path)
    source = example_source(config.examples)
    tokenizer = tokenizer_of(config, source, folder)
    stream = functools.partial(BatchStream, source, tokenizer, legs_of(config, tokenizer), seed=config.seed)
    module = network_of(config, tokenizer)
    figures = train_language_model(module, StreamData(stream), folder)
    _export(module.model, tokenizer, folder, export)
    return figures | {"torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}


def _check_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value!r}: expected one of {', '.join(allowed)}{suggest(value, allowed)}")


def example_source(options: ExamplesConfig) -> ExampleSource:
    """Problems of the built-in tasks, or requests from files.

    Raises:
        UserError: an unknown task; a file that is missing, damaged or of another version.
    """
    for name in options.tasks:
        _check_choice("examples.tasks", name, GENERATED_TASKS)
    if options.tasks:
        return ProblemExamples([build_task(name) for name in options.tasks])
    if not options.path or not options.validation_path:
        raise UserError("examples.path and examples.validation_path: give a JSONL file each, or name built-in tasks in examples.tasks")
    train = _requests("examples.path", options.path, options.digest)
    return RequestExamples(train, _requests("examples.validation_path", options.validation_path, None), options.swap_share, options.invent_share)


def _requests(key: str, path: str, digest: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Prompts with their records; lines that hold no request are counted, reported and left out.

    Raises:
        UserError: the file cannot be read, is of another version, or no line holds a request.
    """
    records = read_records(path, key)
    complaints, actual = records.complaints, records.digest[:16]
    if digest is not None and actual != digest:
        raise UserError(f"{key}={path!r}: the file's digest is {actual}, the configuration names {digest}: it is cut off or of another version")
    requests = []
    for row in records.rows:
        prompt = str(row.fields.get("prompt", ""))
        try:
            requests.append((prompt, SlotsTask().facts(prompt, str(row.fields.get("answer", "")))["record"]))
        except ValueError as error:
            complaints.append(f"{row.place}: {error}")
    if not requests:
        raise UserError(f"{key}={path!r}: no line holds a request; the first: {complaints[0]}")
    if complaints:
        log.warning("%s: %d lines hold no request and are left out; the first: %s", path, len(complaints), complaints[0])
    return requests


def tokenizer_of(config: EmbeddedConfig, source: ExampleSource, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer a training began with; a new one where it has not begun.

    Raises:
        UserError: the training began with a tokenizer of other texts.
    """
    if config.tokenizer_from:
        return AutoTokenizer.from_pretrained(config.tokenizer_from)
    corpus = list(source.corpus())
    digest = hashlib.sha256(json.dumps([config.vocab_size, corpus]).encode()).hexdigest()[:16]
    home = folder / "tokenizer"
    if (home / TOKENIZER_FILE).is_file():
        began_with = json.loads((home / TOKENIZER_FILE).read_text(encoding="utf-8"))["digest"]
        if began_with != digest:
            raise UserError(
                f"{home}: the tokenizer was learnt from other texts ({began_with}) than the configuration names ({digest}): "
                "give another output_dir, or overwrite=true to start again"
            )
        return AutoTokenizer.from_pretrained(str(home))
    tokenizer = train_tokenizer(corpus, config.vocab_size, config.network.max_sequence_length)
    save_tokenizer(tokenizer, home)
    write_json(home / TOKENIZER_FILE, {"digest": digest})
    return tokenizer


def legs_of(config: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase) -> list[Leg]:
    """What is trained for how many steps."""
    mask_id, eot_id = int(tokenizer.mask_token_id or 0), int(tokenizer.eos_token_id)
    objective: Objective = NextToken(eot_id) if config.objective == "next_token" else MaskedDiffusion(mask_id, eot_id)
    legs = [Leg(config.schedule.total_steps, objective, config.shape)]
    if config.causal_steps:
        whole_answers = replace(config.shape, long_share=0.0, prefix_share=0.0)
        legs.insert(0, Leg(config.causal_steps, BlockDiffusion(mask_id, eot_id, 1, "prompt"), whole_answers))
    return legs


def network_of(config: EmbeddedConfig, tokenizer: PreTrainedTokenizerBase) -> LanguageTraining:
    """The untrained network of a configuration, ready to be trained."""
    sizes = config.network
    vocab_size = max(config.vocab_size, len(tokenizer))
    if sizes.kind == "llada":
        model = LLaDAModelLM(
            LLaDAConfig(
                d_model=sizes.d_model,
                n_layers=sizes.n_layers,
                n_heads=sizes.n_heads,
                mlp_hidden_size=sizes.mlp_hidden_size,
                vocab_size=vocab_size,
                max_sequence_length=sizes.max_sequence_length,
                rope_theta=sizes.rope_theta,
                mask_token_id=int(tokenizer.mask_token_id),
                eos_token_id=int(tokenizer.eos_token_id),
                architectures=["LLaDAModelLM"],
            )
        )
        return DiffusionTraining(model, model.model.transformer.blocks, config.schedule)
    causal = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=sizes.d_model,
            num_hidden_layers=sizes.n_layers,
            num_attention_heads=sizes.n_heads,
            intermediate_size=sizes.mlp_hidden_size,
            vocab_size=vocab_size,
            max_position_embeddings=sizes.max_sequence_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=int(tokenizer.eos_token_id),
            pad_token_id=int(tokenizer.eos_token_id),
        )
    )
    return CausalTraining(causal, causal.model.layers, config.schedule)


def _export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, export: Path) -> None:
    """Weights, tokenizer, loss plot and the losses that identify the training."""
    model.save_pretrained(export)
    save_tokenizer(tokenizer, export)
    logs = sorted((folder / "logs").glob("*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    train = read_losses(logs, "train_loss")
    write_losses(train, export / "losses.csv")
    plot_losses(train, read_losses(logs, "val_loss"), export / "loss.png", f"Training of {export.name}")
