"""The parts that several stages build from a configuration: the model, the prompts and the components."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from learn2pd.cli.config import DataConfig, MethodConfig, ModelConfig, RunConfig
from learn2pd.data.humaneval import humaneval_prompts
from learn2pd.data.prompts import Prompt, deal, record_prompts, task_prompts
from learn2pd.data.reading import Records, hub_records, read_records
from learn2pd.data.tasks import SPLITS, Checker, ProgramChecker, Task
from learn2pd.decoding import BLOCK_LENGTH, encode_checked, provided_by
from learn2pd.errors import UserError, suggest
from learn2pd.evaluation.informed import no_answers
from learn2pd.files import here_or_shipped
from learn2pd.method import Method
from learn2pd.models.files import ADAPTER_CONFIG, check_folder, why_unreachable
from learn2pd.models.infilling import given_tokens
from learn2pd.models.loading import Model, load_model, read_skeleton
from learn2pd.registry import GENERATED_TASKS, Provided, build_task
from learn2pd.types import Sampling

log = logging.getLogger(__name__)
FILE_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
LONG_SHOWN = 3  # prompts that a message names as too long


@functools.lru_cache(maxsize=2)
def _model(**options: Any) -> Model:
    try:
        return load_model(**options)
    except UserError as error:
        raise UserError(f"model.{error}") from error


def model_of(config: RunConfig) -> Model:
    """Return the diffusion language model, which is loaded once in each process."""
    return _model(**dataclasses.asdict(config.model))


def check_revision(model: ModelConfig) -> None:
    """Check that no revision of a folder is asked for.

    Args:
        model: the section `model` of the configuration.

    Raises:
        UserError: a revision is given, and the model is a folder.
    """
    if model.revision is not None and Path(here_or_shipped(model.path)).is_dir():
        raise UserError(
            f"model.revision={model.revision!r}: model.path={model.path!r} is a folder, which has no revisions; "
            "leave model.revision out"
        )


def check_adapter(adapter: str | None) -> None:
    """Check that an adapter exists, before a model is loaded.

    Args:
        adapter: folder or hub name of the adapter; None where there is none.

    Raises:
        UserError: the folder does not exist or holds no adapter.
    """
    if adapter is not None:
        try:
            check_folder("adapter", adapter, f"a peft adapter with {ADAPTER_CONFIG}", ADAPTER_CONFIG)
        except UserError as error:
            raise UserError(f"model.{error}") from error


def with_blocks(config: RunConfig) -> RunConfig:
    """Return the configuration with the length of the model's blocks, where it states none.

    Args:
        config: the configuration.

    Raises:
        UserError: the model's config.json cannot be read, or a revision of a folder is asked for.
    """
    model = config.model
    check_revision(model)
    if config.decode.block_length:
        return config
    try:
        network = read_skeleton(model.path, torch.float32, model.revision, model.family)
    except UserError as error:
        raise UserError(f"model.{error}") from error
    decode = dataclasses.replace(config.decode, block_length=network.causal_block or BLOCK_LENGTH)
    return dataclasses.replace(config, decode=decode)


def prompts_of(config: RunConfig) -> list[Prompt]:
    """Return the prompts of all splits of a run. A file is read once in each process, unless it changes.

    Args:
        config: the configuration.

    Raises:
        UserError: the prompts cannot be read or dealt out; the message names the configuration key that is at fault.
    """
    data = config.data
    files = [path for path in (data.path, data.domain, data.validation_path, data.test_path) if path]
    return list(_prompts(json.dumps(dataclasses.asdict(data)), config.seed, tuple(map(_stamp, files))))


def _stamp(path: str) -> tuple[int, ...]:
    """Return numbers that change when a file is replaced or written. A pipe keeps its numbers when it is read."""
    try:
        status = os.stat(here_or_shipped(path))
    except (OSError, ValueError):
        return ()
    identity = (status.st_dev, status.st_ino)
    return identity if stat.S_ISFIFO(status.st_mode) else (*identity, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _prompts(described: str, seed: int, stamps: tuple[tuple[int, ...], ...]) -> list[Prompt]:
    data = DataConfig(**json.loads(described))
    counts = dict(zip(SPLITS, (data.train_prompts, data.validation_prompts, data.test_prompts), strict=True))
    if data.domain in GENERATED_TASKS or (data.domain is None and data.source == "tasks"):
        own_splits = "built-in tasks bring their own splits; set data.source=jsonl and data.path"
        _refuse_files({"validation_path": data.validation_path, "test_path": data.test_path}, own_splits)
        domain = [data.domain] if data.domain else data.tasks
        learnt = task_prompts(_generators(domain, "data.domain" if data.domain else "data.tasks"), counts, seed)
        if data.domain is None:
            return learnt
        learnt = [prompt for prompt in learnt if prompt.split != "test"]
        return learnt + task_prompts(_generators(data.tasks, "data.tasks"), {"test": counts["test"]}, seed)
    if data.source == "humaneval" and data.domain is None:
        files = {"path": data.path, "validation_path": data.validation_path, "test_path": data.test_path}
        _refuse_files(files, "data.source=humaneval brings its own problems; set data.source=jsonl")
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


def _refuse_files(files: Mapping[str, str | None], reason: str) -> None:
    """Refuse files of prompts where the prompts come from somewhere else.

    Args:
        files: paths by the names of their keys in the section `data`.
        reason: where the prompts come from, for the message.

    Raises:
        UserError: one of the keys is set.
    """
    for key, path in files.items():
        if path is not None:
            raise UserError(f"data.{key}={path!r}: {reason}")


def _generators(names: Sequence[str], key: str) -> list[Task]:
    """Build the tasks that generate problems of their own.

    Args:
        names: names of tasks.
        key: the configuration key, for the message.

    Raises:
        UserError: there is no name, or one is not that of a task with problems of its own.
    """
    if not names:
        raise UserError(f"{key} is empty: name some of {', '.join(GENERATED_TASKS)}")
    for name in names:
        if name not in GENERATED_TASKS:
            raise UserError(
                f"{key}: unknown task {name!r}{suggest(name, GENERATED_TASKS)}; "
                f"expected some of {', '.join(GENERATED_TASKS)}"
            )
    return [build_task(name) for name in names]


def _main_records(data: DataConfig) -> Records:
    """Read the records of `data.domain` where it is set, else those of `data.path`."""
    if data.domain is not None:
        if not data.domain.lower().removesuffix(".gz").endswith(FILE_ENDINGS):
            raise UserError(
                f"data.domain={data.domain!r}: expected one of {', '.join(GENERATED_TASKS)}, "
                f"or a file that ends in {', '.join(FILE_ENDINGS)}"
                f"{suggest(data.domain, GENERATED_TASKS)}"
            )
        return read_records(data.domain, "data.domain")
    if not data.path:
        needed = "a file" if data.source == "jsonl" else "the name of a hub data set"
        raise UserError(f"data.path is not set: data.source={data.source} needs {needed}")
    if data.source == "jsonl":
        return read_records(data.path)
    unreachable = None if Path(data.path).exists() else why_unreachable()
    return hub_records(data.path, data.subset, data.hub_split, unreachable, data.revision)


def given_of(config: RunConfig, prompts: int) -> list[list[Any]] | None:
    """Return the parts of the answers that stand from the start, one entry for each prompt; None where there are none.

    Args:
        config: the configuration.
        prompts: the number of prompts.
    """
    return [config.decode.given] * prompts if config.decode.given else None


def check_decoding(config: RunConfig, model: Model, stops: Sequence[str]) -> None:
    """Check the answers' given parts and the texts that end answers, before anything is decoded.

    Args:
        config: the configuration.
        model: the model.
        stops: the names of the stop rules that decode.

    Raises:
        UserError: the given parts cannot be used, or a text ends answers that no rule looks for.
    """
    if config.decode.given:
        try:
            given_tokens(model, [config.decode.given], config.decode.gen_length)
        except UserError as error:
            told = str(error).replace("given 0", "given", 1)
            for words in ("perhaps None", "or None"):  # on the command line nothing is null
                told = told.replace(words, words.replace("None", "null"))
            raise UserError(f"decode.{told}") from error
    strings = config.decode.stop_strings
    if not all(strings):
        raise UserError(f"decode.stop_strings={strings!r}: a text is empty")
    if "text" in stops and not strings:
        raise UserError("decode.stop_strings is empty: the stop rule 'text' needs the texts at which an answer ends")
    if strings and "text" not in stops:
        raise UserError(
            f"decode.stop_strings={strings!r}: only the stop rule 'text' reads them, "
            f"and the stop rules are {', '.join(stops)}"
        )


_usable: dict[str, list[Prompt]] = {}  # usable prompts by model, length of the canvas and prompts


def usable_prompts(config: RunConfig, model: Model) -> list[Prompt]:
    """Return the prompts of a run that its model can take.

    The prompts go through `check_prompts`, which is done once in each process.

    Args:
        config: the configuration.
        model: the model.

    Raises:
        UserError: `prompts_of` or `check_prompts` refuses the prompts.
    """
    prompts = prompts_of(config)
    gen_length = config.decode.gen_length
    skip_long = config.data.skip_long
    described = [[prompt.id, prompt.split, prompt.origin, prompt.task, prompt.facts] for prompt in prompts]
    key = json.dumps([model.spec.fingerprint, gen_length, skip_long, described])
    if key not in _usable:
        _usable.clear()
        _usable[key] = check_prompts(model, prompts, gen_length, skip_long)
    return list(_usable[key])


def check_prompts(model: Model, prompts: Sequence[Prompt], gen_length: int, skip_long: bool = False) -> list[Prompt]:
    """Encode and check the prompts, and leave out those that cannot be used.

    No two of the remaining prompts that belong to different splits have the same tokens. Among prompts with the same
    tokens, those of the test split are kept, else those of the validation split. The prompts that are left out are
    counted in the log.

    Args:
        model: the model, whose tokenizer and longest sequence decide.
        prompts: the prompts of all splits.
        gen_length: length of the canvas, in tokens.
        skip_long: leave out prompts that are too long; with False they are refused.

    Returns:
        The prompts that are left, in their order. They carry their token ids, so that no stage encodes them again.

    Raises:
        UserError: a prompt has no tokens, is too long, or cannot be encoded (the message says where the prompt stands),
            or a split has no prompt left.
    """
    tokens: dict[int, tuple[int, ...]] = {}  # tokens of the prompts that fit, by place in `prompts`
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
    usable = [
        dataclasses.replace(prompts[place], ids=ids)
        for place, ids in tokens.items()
        if keepers[ids] == prompts[place].split
    ]
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
    """Build the checkers of prompts.

    Args:
        config: the configuration.
        prompts: the prompts.

    Returns:
        The checkers by the names of their tasks.

    Raises:
        UserError: a checker runs generated code and the configuration does not allow it.
    """
    checkers: dict[str, Checker] = {}
    for name in {prompt.task: None for prompt in prompts if prompt.task}:
        checker = build_task(name, config.data.run_generated_code)
        if isinstance(checker, ProgramChecker):
            checker.sandbox.check_allowed()
        checkers[name] = checker
    return checkers


def provided_to(config: RunConfig, model: Model, folder: Path) -> Provided:
    """Return the values that components receive without being given them as options (see registry.py).

    Args:
        config: the configuration.
        model: the model.
        folder: the folder of the trained policy.
    """
    length = config.decode.block_length
    floor = config.decode.stop_floor
    strings = config.decode.stop_strings
    return {
        **provided_by(model),
        "folder": lambda: folder,
        "strings": lambda: strings,
        "block_length": lambda: length,
        "refresh_tokens": lambda: length,
        "floor": lambda: floor,
    }


def sampling_of(config: RunConfig) -> Sampling:
    """Return the sampling of a configuration.

    Args:
        config: the configuration.

    Raises:
        UserError: a value is not allowed.
    """
    try:
        return Sampling(config.decode.temperature, config.decode.top_p, config.decode.top_k)
    except ValueError as error:
        raise UserError(f"decode.{error}") from error


def method_of(
    config: RunConfig, model: Model, folder: Path, method: MethodConfig, stop: str, known: Provided | None = None
) -> Method:
    """Build the method that a configuration describes, and check that it fits the model.

    Args:
        config: the configuration.
        model: the model.
        folder: the folder of the trained policy.
        method: the method's description.
        stop: the name of the stop rule.
        known: what a policy that knows the answers receives; None builds such a policy without the answers.

    Raises:
        UserError: a component cannot be built, or the components do not fit each other or the model.
    """
    built = Method.from_names(
        method.policy,
        method.scheduler,
        method.cache,
        stop,
        options=method.options,
        scheduler_options=method.scheduler_options,
        cache_options=method.cache_options,
        provided={**provided_to(config, model, folder), **(known or no_answers(config.decode.gen_length))},
    )
    built.check(model.spec)
    return built
