"""Train an embedded model from nothing and export it in the hub's layout.

The configurations of `python train.py config=tiny_dllm` and its neighbours are trained here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from learn2pd.data.reading import read_records
from learn2pd.data.tasks.slots import SlotsTask
from learn2pd.embedded.config import EmbeddedConfig, ExamplesConfig
from learn2pd.embedded.examples import ExampleSource, ProblemExamples, RequestExamples
from learn2pd.embedded.losses import plot_losses, read_losses, write_losses
from learn2pd.embedded.networks import KINDS
from learn2pd.embedded.stream import BatchStream, StreamData
from learn2pd.embedded.tokenizer import save_tokenizer, train_tokenizer
from learn2pd.embedded.training import train_language_model
from learn2pd.errors import UserError, first_line, suggest
from learn2pd.files import write_json
from learn2pd.models.files import check_folder
from learn2pd.models.loading import resolve_device
from learn2pd.registry import GENERATED_TASKS, build_task

log = logging.getLogger(__name__)
TOKENIZER_FILE = "corpus.json"
CPU_MICRO_TOKENS = 1536  # small enough for the caches of a processor core
GPU_MICRO_TOKENS = 40960  # large enough to keep a GPU busy
GPU_WORKERS = 4  # processes that prepare batches, which takes a core longer than a GPU needs to train on them


def checked_source(config: EmbeddedConfig) -> ExampleSource:
    """Check that a configuration can be trained and exported, and return the source of its examples.

    Args:
        config: The configuration of the training.

    Raises:
        UserError: An option, a file or a folder does not fit; the message names it.
    """
    if config.resume:
        raise UserError("resume=true: this training goes on by itself, and only with the configuration it began with")
    _check_choice("network.kind", config.network.kind, list(KINDS))
    resolve_device(config.device)
    source = example_source(config.examples)
    if config.tokenizer_from:
        foreign_tokenizer(config.tokenizer_from, KINDS[config.network.kind].has_mask)
    try:
        Path(config.export_path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.export_path):
            pass
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); expected a folder for the checkpoint"
        raise UserError(f"export_path={config.export_path!r}: {reason}") from error
    return source


def pretrain(config: EmbeddedConfig, source: ExampleSource, output: Path) -> dict[str, Any]:
    """Train the embedded model of a configuration and export it to the configuration's `export_path`.

    Args:
        config: The configuration of the training.
        source: The source of its examples, from `checked_source`.
        output: The folder of the run. The training keeps its state in the subfolder `pretrain`.

    Returns:
        The figures of the training, and what they depend on.

    Raises:
        UserError: The tokenizer or the checkpoint in the folder of the run does not fit.
    """
    folder = output / "pretrain"
    export = Path(config.export_path)
    tokenizer = tokenizer_of(config, source, folder)
    device = resolve_device(config.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads in a forked worker would deadlock
    micro_tokens = GPU_MICRO_TOKENS if on_gpu else CPU_MICRO_TOKENS
    kind = KINDS[config.network.kind]
    objective = kind.objective(config, tokenizer)
    stream = functools.partial(BatchStream, source, tokenizer, objective, config.shape, config.seed, micro_tokens)
    module = kind.build(config, tokenizer)
    data = StreamData(stream, workers=min(GPU_WORKERS, os.cpu_count() or 1) if on_gpu else 0)
    figures = train_language_model(module, data, folder, device)
    _export(module.model.cpu(), tokenizer, folder, export)
    machine = torch.cuda.get_device_name(device) if on_gpu else platform.machine()
    return figures | {"torch": torch.__version__, "machine": machine, "threads": torch.get_num_threads()}


def _check_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raise UserError where an option is none of the allowed ones."""
    if value not in allowed:
        raise UserError(f"{key}={value!r}: expected one of {', '.join(allowed)}{suggest(value, allowed)}")


def example_source(options: ExamplesConfig) -> ExampleSource:
    """Return problems of the built-in tasks, or requests from files.

    Args:
        options: The part of the configuration that says where examples come from.

    Raises:
        UserError: A task is unknown, or a file is missing, damaged or of another version.
    """
    for name in options.tasks:
        _check_choice("examples.tasks", name, GENERATED_TASKS)
    if options.tasks and (options.path or options.validation_path):
        raise UserError(
            f"examples.tasks={options.tasks}: expected either tasks or examples.path with examples.validation_path, "
            "not both; examples.tasks=[] takes the tasks away"
        )
    if options.tasks:
        return ProblemExamples([build_task(name) for name in options.tasks])
    if not options.path or not options.validation_path:
        raise UserError(
            f"examples.path={options.path!r} and examples.validation_path={options.validation_path!r}: "
            "expected a JSONL file each, or names of built-in tasks in examples.tasks"
        )
    train = _requests("examples.path", options.path, options.digest)
    return RequestExamples(
        train,
        _requests("examples.validation_path", options.validation_path, None),
        options.swap_share,
        options.invent_share,
    )


def _requests(key: str, path: str, digest: str | None) -> list[tuple[str, dict[str, Any]]]:
    """Read prompts with their records; lines that hold no request are counted, reported and left out.

    Raises:
        UserError: The file cannot be read, it is of another version, or no line holds a request.
    """
    records = read_records(path, key)
    complaints = records.complaints
    actual = records.digest[:16]
    if digest is not None and actual != digest:
        raise UserError(
            f"{key}={path!r}: the file's digest is {actual}, the configuration names {digest}: "
            "it is cut off or of another version; examples.digest=null takes any file"
        )
    requests = []
    for row in records.rows:
        try:
            requests.append(_request(row.fields))
        except ValueError as error:
            complaints.append(f"{row.place}: {error}")
    if not requests:
        raise UserError(f"{key}={path!r}: no line holds a request; the first: {complaints[0]}")
    if complaints:
        message = "%s: %d lines hold no request and are left out; the first: %s"
        log.warning(message, path, len(complaints), complaints[0])
    return requests


def _request(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the prompt and the record of one line.

    Raises:
        ValueError: The line holds no request that can be learnt.
    """
    for name in ("prompt", "answer"):
        if not isinstance(entry.get(name), str) or not entry[name].strip():
            raise ValueError(f"there is no text in the field {name!r}")
    record = SlotsTask().facts(entry["prompt"], entry["answer"])["record"]
    try:
        json.dumps([entry["prompt"], record], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair is no text") from error
    return entry["prompt"], record


def foreign_tokenizer(path: str, has_mask: bool) -> PreTrainedTokenizerBase:
    """Return the tokenizer in the folder of another model.

    Args:
        path: The folder.
        has_mask: Whether the tokenizer needs a mask token.

    Raises:
        UserError: The folder has no tokenizer, or the tokenizer lacks something that the training needs.
    """
    expected = "a folder with tokenizer.json and tokenizer_config.json"
    check_folder("tokenizer_from", path, expected, "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the tokenizers library raises nothing narrower
        reason = f"the tokenizer could not be loaded ({first_line(error)}); expected {expected}"
        raise UserError(f"tokenizer_from={path!r}: {reason}") from error
    needed = {"end-of-text token": tokenizer.eos_token_id, "chat template": tokenizer.chat_template}
    if has_mask:
        needed["mask token"] = tokenizer.mask_token_id
    for name, value in needed.items():
        if value is None:
            raise UserError(f"tokenizer_from={path!r}: the tokenizer has no {name}; expected an embedded model's")
    return tokenizer


def tokenizer_of(config: EmbeddedConfig, source: ExampleSource, folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a training began with, or a new one where the training has not begun.

    Args:
        config: The configuration of the training.
        source: The source of the texts that a new tokenizer is learnt from.
        folder: The folder of the training, in which the tokenizer is kept.

    Raises:
        UserError: The training began with a tokenizer that was learnt from other texts.
    """
    if config.tokenizer_from:
        return foreign_tokenizer(config.tokenizer_from, KINDS[config.network.kind].has_mask)
    corpus = list(source.corpus())
    digest = hashlib.sha256(json.dumps([config.vocab_size, corpus]).encode()).hexdigest()[:16]
    home = folder / "tokenizer"
    if (home / TOKENIZER_FILE).is_file():
        began_with = json.loads((home / TOKENIZER_FILE).read_text(encoding="utf-8"))["digest"]
        if began_with != digest:
            raise UserError(
                f"{home}: the tokenizer was learnt from other texts ({began_with}) than the configuration names "
                f"({digest}): give another output_dir, or overwrite=true to start again"
            )
        return AutoTokenizer.from_pretrained(str(home))
    tokenizer = train_tokenizer(corpus, config.vocab_size, config.network.max_sequence_length)
    save_tokenizer(tokenizer, home)
    write_json(home / TOKENIZER_FILE, {"digest": digest})
    return tokenizer


def _export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, export: Path) -> None:
    """Write weights, tokenizer, the plot of the loss and the losses that identify the training."""
    model.save_pretrained(export)
    shutil.copymode(export / "config.json", export / "model.safetensors")  # which its owner alone can read otherwise
    save_tokenizer(tokenizer, export)
    logs = sorted((folder / "logs").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    train = read_losses(logs, "train_loss")
    write_losses(train, export / "losses.csv")
    plot_losses(train, read_losses(logs, "val_loss"), export / "loss.png", f"Training of {export.name}")
