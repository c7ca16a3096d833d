"""From a configuration to what several stages need: model, prompts, components."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch

from learn2pd.cli.config import MethodConfig, RunConfig
from learn2pd.data.prompts import Prompt, field_prompts, hub_records, jsonl_records, task_prompts
from learn2pd.data.tasks import TASK_NAMES
from learn2pd.decoding import encode_checked, provided_by
from learn2pd.errors import UserError
from learn2pd.method import Method
from learn2pd.models.loading import Model, load_model
from learn2pd.registry import Provided
from learn2pd.types import Sampling


@functools.lru_cache(maxsize=2)
def _model(**options: Any) -> Model:
    try:
        return load_model(**options)
    except UserError as error:
        raise UserError(f"model.{error}") from error


def model_of(config: RunConfig) -> Model:
    """The dLLM, loaded once a process."""
    return _model(**dataclasses.asdict(config.model))


def prompts_of(config: RunConfig) -> list[Prompt]:
    """Every prompt of a run, all splits."""
    data = config.data
    counts = {"train": data.train_prompts, "validation": data.validation_prompts, "test": data.test_prompts}
    if data.domain in TASK_NAMES:
        domain = task_prompts([data.domain], {split: count for split, count in counts.items() if split != "test"}, config.seed)
        return domain + task_prompts(data.tasks, {"test": data.test_prompts}, config.seed)
    if data.domain is not None:
        if not data.domain.endswith(".jsonl"):
            raise UserError(f"data.domain={data.domain!r}: expected one of {', '.join(TASK_NAMES)}, or a file that ends in .jsonl")
        records, complaints = jsonl_records(data.domain)
        return field_prompts(records, complaints, data.prompt_field, data.answer_field, counts, config.seed)
    if data.source == "tasks":
        return task_prompts(data.tasks, counts, config.seed)
    if not data.path:
        raise UserError(
            f"data.path is not set: data.source={data.source} needs {'a file' if data.source == 'jsonl' else 'the name of a hub data set'}"
        )
    if data.source == "jsonl":
        records, complaints = jsonl_records(data.path)
    else:
        records, complaints = hub_records(data.path, data.subset, data.hub_split), []
    return field_prompts(records, complaints, data.prompt_field, data.answer_field, counts, config.seed)


def check_prompts(model: Model, prompts: list[Prompt], gen_length: int) -> None:
    """Raises UserError for the first prompt that is empty or too long, before any time is spent on the others."""
    for prompt in prompts:
        encode_checked(model, prompt.text, prompt.id, gen_length)


def provided_to(config: RunConfig, model: Model, folder: Path) -> Provided:
    """What components get without being told: see registry.py."""
    length, floor = config.decode.block_length, config.decode.stop_floor
    return {
        **provided_by(model),
        "folder": lambda: folder,
        "block_length": lambda: length,
        "refresh_tokens": lambda: length,
        "floor": lambda: floor,
    }


def sampling_of(config: RunConfig) -> Sampling:
    """Raises UserError for values that make no sense."""
    try:
        return Sampling(config.decode.temperature, config.decode.top_p, config.decode.top_k)
    except ValueError as error:
        raise UserError(f"decode.{error}") from error


def method_of(config: RunConfig, model: Model, folder: Path, method: MethodConfig, stop: str) -> Method:
    """The method that a configuration describes, which fits the model. An oracle is built without the answers.

    Raises:
        UserError: one of its components cannot be built, or they do not go together.
    """
    unanswered = torch.zeros(0, config.decode.gen_length, dtype=torch.long)
    built = Method.from_names(
        method.policy, method.scheduler, method.cache, stop,
        options=method.options, scheduler_options=method.scheduler_options, cache_options=method.cache_options,
        provided={**provided_to(config, model, folder), "reference": lambda: unanswered},
    )  # fmt: skip
    built.check(model.spec)
    return built
