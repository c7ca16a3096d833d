"""From a configuration to what several stages need: model, prompts, components."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from learn2pd.cli.config import DataConfig, MethodConfig, RunConfig
from learn2pd.data.humaneval import humaneval_prompts
from learn2pd.data.prompts import Prompt, deal, record_prompts, task_prompts
from learn2pd.data.reading import Records, hub_records, read_records
from learn2pd.data.tasks import SPLITS, Checker, ProgramChecker, Task
from learn2pd.decoding import encode_checked, provided_by
from learn2pd.errors import UserError, suggest
from learn2pd.method import Method
from learn2pd.models.loading import Model, load_model
from learn2pd.registry import GENERATED_TASKS, Provided, build_task
from learn2pd.types import Sampling

log = logging.getLogger(__name__)
FILE_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
LONG_SHOWN = 3


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
    """Every prompt of a run, all splits. A file is read once a process, unless it changes.

    Raises:
        UserError: the prompts cannot be had, by the configuration key that is at fault.
    """
    data = config.data
    files = [path for path in (data.path, data.domain, data.validation_path, data.test_path) if path]
    return list(_prompts(json.dumps(dataclasses.asdict(data)), config.seed, tuple(map(_stamp, files))))


def _stamp(path: str) -> tuple[int, ...]:
    """What is another where a file is another; a pipe stays what it is when it has been read."""
    try:
        status = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):
        return ()
    identity = (status.st_dev, status.st_ino)
    return identity if stat.S_ISFIFO(status.st_mode) else (*identity, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _prompts(described: str, seed: int, stamps: tuple[tuple[int, ...], ...]) -> list[Prompt]:
    data = DataConfig(**json.loads(described))
    counts = dict(zip(SPLITS, (data.train_prompts, data.validation_prompts, data.test_prompts), strict=True))
    if data.domain in GENERATED_TASKS or (data.domain is None and data.source == "tasks"):
        for key in ("validation_path", "test_path"):
            if getattr(data, key) is not None:
                raise UserError(
                    f"data.{key}={getattr(data, key)!r}: built-in tasks bring their own splits; set data.source=jsonl and data.path"
                )
        domain = [data.domain] if data.domain else data.tasks
        learnt = task_prompts(_generators(domain, "data.domain" if data.domain else "data.tasks"), counts, seed)
        if data.domain is None:
            return learnt
        learnt = [prompt for prompt in learnt if prompt.split != "test"]
        return learnt + task_prompts(_generators(data.tasks, "data.tasks"), {"test": counts["test"]}, seed)
    if data.source == "humaneval" and data.domain is None:
        for key in ("path", "validation_path", "test_path"):
            if getattr(data, key) is not None:
                raise UserError(
                    f"data.{key}={getattr(data, key)!r}: data.source=humaneval brings its own problems; set data.source=jsonl"
                )
        return deal(humaneval_prompts(data.run_generated_code), {}, counts, seed)
    checker = build_task(data.task, data.run_generated_code, "data.task")
    read = functools.partial(
        record_prompts, prompt_field=data.prompt_field, answer_field=data.answer_field, task=data.task, checker=checker
    )
    own = {
        split: read(read_records(path, f"data.{split}_path"))
        for split, path in (("validation", data.validation_path), ("test", data.test_path))
        if path is not None
    }
    return deal(read(_main_records(data)), own, counts, seed)


def _generators(names: Sequence[str], key: str) -> list[Task]:
    """Raises UserError for a name that is no task with problems of its own."""
    for name in names:
        if name not in GENERATED_TASKS:
            raise UserError(
                f"{key}: unknown task {name!r}{suggest(name, GENERATED_TASKS)}; expected some of {', '.join(GENERATED_TASKS)}"
            )
    return [build_task(name) for name in names]


def _main_records(data: DataConfig) -> Records:
    """The records of `data.domain`, else of `data.path`."""
    if data.domain is not None:
        if not data.domain.lower().removesuffix(".gz").endswith(FILE_ENDINGS):
            raise UserError(
                f"data.domain={data.domain!r}: expected one of {', '.join(GENERATED_TASKS)}, or a file that ends in {', '.join(FILE_ENDINGS)}"
                f"{suggest(data.domain, GENERATED_TASKS)}"
            )
        return read_records(data.domain, "data.domain")
    if not data.path:
        raise UserError(
            f"data.path is not set: data.source={data.source} needs {'a file' if data.source == 'jsonl' else 'the name of a hub data set'}"
        )
    return read_records(data.path) if data.source == "jsonl" else hub_records(data.path, data.subset, data.hub_split)


_usable: dict[str, list[Prompt]] = {}  # by model, canvas and prompts


def usable_prompts(config: RunConfig, model: Model) -> list[Prompt]:
    """The prompts of a run that its model can take: `check_prompts` of all of them, done once a process.

    Raises:
        UserError: as `prompts_of` and `check_prompts`.
    """
    prompts, gen_length, skip_long = prompts_of(config), config.decode.gen_length, config.data.skip_long
    described = [[prompt.id, prompt.split, prompt.origin, prompt.task, prompt.facts] for prompt in prompts]
    key = json.dumps([model.spec.fingerprint, gen_length, skip_long, described])
    if key not in _usable:
        _usable.clear()
        _usable[key] = check_prompts(model, prompts, gen_length, skip_long)
    return list(_usable[key])


def check_prompts(model: Model, prompts: Sequence[Prompt], gen_length: int, skip_long: bool = False) -> list[Prompt]:
    """The prompts that fit on a canvas, in their order; no two of different splits are the same tokens to the model.

    Of prompts that are the same tokens, the test split keeps its one, and training gives way to validation. What is left out is counted and
    logged.

    Args:
        model: its tokenizer and its longest sequence decide.
        prompts: of all splits.
        gen_length: length of the canvas, in tokens.
        skip_long: leave out prompts that are too long, where they would otherwise be refused.

    Raises:
        UserError: a prompt is too long or has no tokens, by its place in the file; or a split has no prompt left.
    """
    tokens: dict[int, tuple[int, ...]] = {}  # by place in `prompts`
    too_long: list[str] = []
    for place, prompt in enumerate(prompts):
        try:
            ids = model.encode(prompt.content)
        except UserError as error:
            raise UserError(f"prompt {prompt.place}: {error}") from error
        if len(ids) + gen_length > model.spec.max_length:
            too_long.append(f"{prompt.place} has {len(ids)} tokens")
        else:
            tokens[place] = tuple(encode_checked(model, ids, prompt.place, gen_length))
    if too_long:
        limit = f"{model.spec.name} takes at most {model.spec.max_length} tokens with decode.gen_length={gen_length}"
        shown = "; ".join(too_long[:LONG_SHOWN]) + ("; ..." if len(too_long) > LONG_SHOWN else "")
        if not skip_long:
            raise UserError(
                f"{len(too_long)} of {len(prompts)} prompts are too long: {shown}; {limit}: "
                "shorten them, lower decode.gen_length, or set data.skip_long=true to leave them out"
            )
        log.warning(
            "%d of %d prompts skipped because they are too long: %s; %s", len(too_long), len(prompts), shown, limit
        )
    keepers: dict[tuple[int, ...], str] = {}
    for split in reversed(SPLITS):
        keepers |= {ids: split for place, ids in tokens.items() if prompts[place].split == split and ids not in keepers}
    usable = [prompts[place] for place, ids in tokens.items() if keepers[ids] == prompts[place].split]
    if len(usable) < len(tokens):
        log.warning(
            "%d prompts skipped: to the model they are the same tokens as prompts of another split",
            len(tokens) - len(usable),
        )
    for split in {prompt.split: None for prompt in prompts}:
        if all(prompt.split != split for prompt in usable):
            raise UserError(
                f"no {split} prompt is left: all of them are too long, or the same tokens as prompts of another split"
            )
    return usable


def checkers_of(config: RunConfig, prompts: Sequence[Prompt]) -> dict[str, Checker]:
    """The checkers of prompts by the name of their task.

    Raises:
        UserError: one of them runs generated code, and nobody allowed it.
    """
    checkers: dict[str, Checker] = {}
    for name in {prompt.task: None for prompt in prompts if prompt.task}:
        checker = build_task(name, config.data.run_generated_code)
        if isinstance(checker, ProgramChecker):
            checker.sandbox.check_allowed()
        checkers[name] = checker
    return checkers


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
