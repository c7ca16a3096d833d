"""The configuration of a run.

`config=NAME` names the file configs/NAME.yaml. The file is checked against the dataclasses below, and `key=value`
arguments override its values.

Every key has its type and its default value here; the YAML files state what is special about a run. The message about
an unknown key names the nearest known key, and the message about a value of the wrong type names the expected type.
Only this file, registry.py and cli/stages/ read a configuration.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from learn2pd.errors import UserError, suggest
from learn2pd.kinds import matches, type_name

STAGES = ("record", "train", "calibrate", "compare")
SCHEMAS = {
    "policy": "learn2pd.cli.config:RunConfig",
    "embedded": "learn2pd.embedded.config:EmbeddedConfig",
}  # class of a configuration by the key `job` of its file


@dataclass
class ModelConfig:
    """The diffusion language model (key `model`)."""

    path: str = "checkpoints/tiny-llada"  # name on the hub, or a folder
    adapter: str | None = None  # peft adapter that is added into the model's weights: name on the hub, or a folder
    dtype: str = "float32"  # float32, bfloat16 or float16
    device: str = "auto"
    revision: str | None = None  # revision of a repository on the hub
    family: str | None = None  # class of your own that reads the checkpoint, as package.module:Class
    compile: bool = False  # use torch.compile: forwards are faster on a GPU, but the first ones are slow


@dataclass
class DataConfig:
    """The prompts and the tasks that judge their answers (key `data`)."""

    # tasks (built in), jsonl (the file `path`, also CSV, TSV or Parquet), hub (the data set `path`) or humaneval
    source: str = "tasks"
    tasks: list[str] = field(default_factory=lambda: ["math", "json", "code"])
    # a built-in task or a JSONL file that provides the train and validation prompts; null takes them from `source`
    domain: str | None = None
    path: str | None = None
    validation_path: str | None = None  # file that holds the validation prompts; null takes them from `path`
    # file that holds the test prompts, such as an official test split; null takes them from `path`
    test_path: str | None = None
    subset: str | None = None  # subset of a data set on the hub
    hub_split: str = "train"
    prompt_field: str = "question"  # field that holds a text, or a list of messages with role and content
    answer_field: str | None = None  # field that holds the right answer; without it no accuracy is reported
    # checker that compares an answer with the right one: final_number, slots, json, or package.module:Class
    task: str = "final_number"
    # true leaves out prompts that are too long for the model; false refuses them before anything is recorded
    skip_long: bool = False
    train_prompts: int = 192  # number over all tasks together, where the tasks are built in
    validation_prompts: int = 48
    test_prompts: int = 96
    run_generated_code: bool = False  # lets the tasks `code` and `humaneval` run the model's output in a subprocess


@dataclass
class DecodeConfig:
    """The settings that all decodes share (key `decode`)."""

    gen_length: int = 256  # length of the canvas, tokens
    block_length: int = 32  # tokens
    batch_size: int = 16
    stop_floor: float = 0.5  # least confidence of the end-of-text that ends an answer (stop rule eot)
    temperature: float = 0.0  # 0 is greedy; recording is always greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all tokens


@dataclass
class RecordConfig:
    """The stage `record` (key `record`)."""

    shard_prompts: int = 32  # prompts in each shard; an interruption costs each process at most one shard
    # processes on each node, each with a GPU of its own; auto starts one for each GPU; under torchrun its numbers count
    devices: int | str = 1
    num_nodes: int = 1
    strategy: str = "auto"  # how Lightning Fabric starts the processes


@dataclass
class TrainConfig:
    """The stage `train` (key `train`)."""

    # positions that the loss counts: masked, answer (masked ones without the padding) or all (committed ones too)
    loss_on: str = "masked"
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch_rows: int = 256  # recorded states (a state is one prompt at one step) in each optimizer step
    max_epochs: int = 60
    patience_epochs: int = 8
    # scratch trains a new network; lora trains an adapter on the filter in `policy`, full trains all its weights
    start: str = "scratch"
    lora_rank: int = 4
    # how often the filter decodes the recorded prompts and a new one is trained on the states that were visited
    rounds: int = 0
    rollout_threshold: float = 0.9  # threshold of the filter in those decodes
    predictors: list[str] = field(default_factory=list)  # predictors trained beside the filter: end_of_text, boundary


@dataclass
class CalibrateConfig:
    """The stage `calibrate` (key `calibrate`).

    Exactly one of the two targets must be set. A target says what a policy may lose against one token a step, when it
    decodes the validation prompts.
    """

    target_agreement: float | None = 0.9  # share of the answer's tokens that must stay the same
    # share of the answers that may become wrong, less the share that becomes right; it needs a checker
    max_accuracy_drop: float | None = None
    confidence: float = 0.9  # confidence of the bound that must meet the target
    # thresholds of the filter, which are tried from the strictest to the fastest
    thresholds: list[float] = field(default_factory=lambda: [0.99, 0.97, 0.95, 0.9, 0.8, 0.65, 0.5])
    # share of the answers that the end-of-text predictor may cut short; its bound has the same confidence
    false_stops: float = 0.05


@dataclass
class MethodConfig:
    """One method of a comparison (an entry of the key `compare.methods`)."""

    name: str = "???"
    policy: str = "???"  # registered name or package.module:Class; `scheduler` and `cache` take the same
    options: dict[str, Any] = field(default_factory=dict)  # options of the policy
    scheduler: str = "blocks"
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    cache: str = "none"
    cache_options: dict[str, Any] = field(default_factory=dict)
    # one option of the policy with a list of values: each value becomes a method, and all of them form one curve
    sweep: dict[str, Any] = field(default_factory=dict)
    # name shared by methods that differ only in the seed of their training; the tables show their mean and spread
    group: str | None = None


@dataclass
class CompareConfig:
    """The stage `compare` (key `compare`)."""

    methods: list[MethodConfig] = field(default_factory=list)
    stops: list[str] = field(default_factory=lambda: ["none", "eot"])
    bootstrap_samples: int = 2000
    accuracy_margin: float = 0.005  # share of the prompts that `fastest within` may lose against one token a step
    policy: str | None = None  # folder of the trained filter; null takes the filter of this run


@dataclass
class RunConfig:
    """The configuration of a run that trains and compares policies."""

    job: str = "policy"  # kind of the configuration: policy, or embedded (the training of an embedded model)
    stages: list[str] = field(default_factory=lambda: ["record", "train", "calibrate", "compare"])
    output_dir: str = "outputs/${name}"
    name: str = "???"  # is set from config=NAME
    seed: int = 0
    threads: int = 0  # number of CPU threads; 0 leaves the number to torch
    resume: bool = False  # continue in an output_dir that belongs to another configuration
    overwrite: bool = False  # delete the outputs of an earlier run in output_dir
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    filter: str = "transformer"  # network of the filter: mlp (the paper's), conv or transformer
    # options of the filter's network: channels, hidden, layers, ...
    filter_options: dict[str, Any] = field(default_factory=dict)
    policy: str | None = None  # folder of the trained filter that train.start=lora or full begins with
    train: TrainConfig = field(default_factory=TrainConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)


# Least and largest allowed values. Limits that a component checks itself are not repeated here.
RANGES: dict[str, tuple[float, float]] = {
    "data.train_prompts": (1, 10**9),
    "data.validation_prompts": (1, 10**9),
    "data.test_prompts": (1, 10**9),
    "decode.gen_length": (1, 10**6),
    "decode.block_length": (1, 10**6),
    "decode.batch_size": (1, 10**6),
    "decode.stop_floor": (0, 1),
    "record.shard_prompts": (1, 10**9),
    "record.num_nodes": (1, 10**6),
    "train.batch_rows": (1, 10**9),
    "train.max_epochs": (1, 10**9),
    "train.patience_epochs": (1, 10**9),
    "train.lora_rank": (1, 1000),
    "train.rounds": (0, 100),
    "train.rollout_threshold": (0, 1),
    "calibrate.target_agreement": (0.0001, 0.9999),
    "calibrate.max_accuracy_drop": (0.0001, 0.9999),
    "calibrate.confidence": (0.5, 0.9999),
    "calibrate.false_stops": (0.0001, 0.9999),
    "compare.bootstrap_samples": (10, 10**6),
    "compare.accuracy_margin": (0, 1),
    "threads": (0, 4096),
    "seed": (0, 2**32 - 1),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "data.source": ("tasks", "jsonl", "hub", "humaneval"),
    "filter": ("mlp", "conv", "transformer"),
    "train.start": ("scratch", "lora", "full"),
    "train.loss_on": ("answer", "masked", "all"),
}


def config_folder() -> Path:
    """Return the folder `configs/` of the working directory, or, where it does not exist, that of the repository."""
    local = Path("configs")
    return local if local.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def parse_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Split the arguments `config=NAME key=value ...` into the name and the overrides.

    Args:
        arguments: the arguments of a command.

    Returns:
        The name, and the overrides as they were written.

    Raises:
        UserError: an argument is not of the form key=value, or no argument names a configuration.
    """
    name = ""
    overrides = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if argument.startswith("-") or not equals:
            meant = f"{key.lstrip('-').replace('-', '_')}={value or 'VALUE'}"
            raise UserError(f"argument {argument!r}: arguments are written key=value, for example {meant}")
        if key == "config":
            name = value
        else:
            overrides.append(argument)
    if not name:
        raise UserError(f"no config=NAME given; there are {', '.join(config_names())}")
    return name, overrides


def config_names() -> list[str]:
    """Return the names of all configurations in `config_folder()`, sorted."""
    return sorted(path.stem for path in config_folder().rglob("*.yaml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> Any:
    """Load and check the configuration of a run.

    Args:
        name: the name of a file in configs/, or the path of a YAML file.
        overrides: `section.key=value` strings.

    Returns:
        A `RunConfig`, or an instance of the class that the file's key `job` stands for.

    Raises:
        UserError: the file does not exist or cannot be read, a key is unknown, or a value has the wrong type or is out
            of its range.
    """
    path = Path(name) if name.endswith(".yaml") else config_folder() / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"config={name}: no such configuration{suggest(name, config_names())}; "
            f"there are {', '.join(config_names())}"
        )
    try:
        written = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    schema = schema_of(written, path)
    given = OmegaConf.create(written)
    for override in overrides:
        key, _, value = override.partition("=")
        _check_key(key, "", schema)
        try:
            OmegaConf.update(given, key, yaml.safe_load(value) if value else None, force_add=True)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"{key}={value}: the value could not be read ({str(error).splitlines()[0]})") from error
    _check_tree(OmegaConf.to_container(given), schema, "", str(path), schema)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema(name=path.stem)), given)
        config: Any = OmegaConf.to_object(cast(DictConfig, merged))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
    if config.job != schema.job:
        stated = f"{path} is a configuration of job={schema.job}"
        raise UserError(f"job={config.job!r}: {stated}, which key=value cannot change")
    if isinstance(config, RunConfig):
        _check_values(config)
    if config.resume and config.overwrite:
        raise UserError("resume=true and overwrite=true contradict each other: set one of them")
    return config


def schema_of(written: Any, path: Path) -> Any:
    """Return the dataclass that a file is checked against.

    Args:
        written: the object in the file.
        path: the path of the file, for the message.

    Raises:
        UserError: the file's key `job` names no dataclass.
    """
    job = written.get("job", "policy") if isinstance(written, dict) else "policy"
    if not isinstance(job, str) or job not in SCHEMAS:
        raise UserError(f"{path}: job={job!r}: expected one of {', '.join(SCHEMAS)}{suggest(str(job), SCHEMAS)}")
    module, _, name = SCHEMAS[job].partition(":")
    return getattr(importlib.import_module(module), name)


def as_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested dicts."""
    return dataclasses.asdict(config)


def identity(config: Any) -> dict[str, Any]:
    """Return the part of a configuration that can change a result.

    Two runs with equal identities are the same run.

    Args:
        config: the configuration.

    Returns:
        Nested dicts without the keys that only say where, when or how a run is carried out.
    """
    described = as_dict(config)
    for key in ("job", "resume", "overwrite", "stages", "output_dir", "threads"):
        described.pop(key, None)
    for section, keys in {"model": ("device", "compile"), "record": ("devices", "num_nodes", "strategy")}.items():
        for key in keys:
            described.get(section, {}).pop(key, None)
    return described


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Describe how two nested dicts differ.

    Args:
        old: the first one.
        new: the second one.
        prefix: is written before every key.

    Returns:
        `key: old -> new` for every leaf that differs.
    """
    changed = []
    for key in sorted(old.keys() | new.keys()):
        before = old.get(key)
        after = new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            changed.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return changed


def _field_type(owner: type, key: str) -> Any:
    return typing.get_type_hints(owner)[key]


def _keys(owner: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a dataclass, and of the dataclasses in it, with its annotation."""
    for entry in dataclasses.fields(owner):
        kind = _field_type(owner, entry.name)
        yield prefix + entry.name, kind
        if dataclasses.is_dataclass(kind):
            yield from _keys(cast(type, kind), f"{prefix}{entry.name}.")


def _check_key(key: str, where: str, schema: type) -> None:
    known = dict(_keys(schema))
    # keys below a dict are options of a component, which checks them itself
    free = (f"{name}." for name, kind in known.items() if typing.get_origin(kind) is dict)
    if key not in known and not key.startswith(tuple(free)):
        last = [other for other in known if other.split(".")[-1] == key.split(".")[-1]]
        hint = f"; did you mean {last[0]!r}" if last else suggest(key, known)
        raise UserError(f"{where}{key}: unknown key{hint}")


def _check_tree(tree: Any, owner: type, prefix: str, where: str, schema: type) -> None:
    """Walk through a plain tree along the dataclasses, and name unknown keys and wrong types by their full key."""
    if not isinstance(tree, dict):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'the file'} must hold keys and values, got {tree!r}")
    names = [entry.name for entry in dataclasses.fields(owner)]
    for key, value in tree.items():
        if key not in names:
            if owner is MethodConfig:
                raise UserError(
                    f"{where}: {prefix}{key}: unknown key{suggest(str(key), names)}; expected {', '.join(names)}"
                )
            _check_key(f"{prefix}{key}", f"{where}: ", schema)
        kind = _field_type(owner, key)
        if dataclasses.is_dataclass(kind):
            _check_tree(value, cast(type, kind), f"{prefix}{key}.", where, schema)
        elif (
            typing.get_origin(kind) is list
            and isinstance(value, list)
            and dataclasses.is_dataclass(typing.get_args(kind)[0])
        ):
            for number, entry in enumerate(value):
                _check_tree(entry, typing.get_args(kind)[0], f"{prefix}{key}[{number}].", where, schema)
        elif not matches(value, kind):
            raise UserError(f"{prefix}{key}={value!r}: expected {type_name(kind)}, got {type(value).__name__}")


def _check_values(config: RunConfig) -> None:
    def value_of(key: str) -> Any:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        return value

    for key, (least, largest) in RANGES.items():
        if value_of(key) is not None and not least <= value_of(key) <= largest:
            raise UserError(f"{key}={value_of(key)}: expected a value from {least:g} to {largest:g}")
    for key, allowed in CHOICES.items():
        if value_of(key) not in allowed:
            raise UserError(
                f"{key}={value_of(key)!r}: expected one of {', '.join(allowed)}{suggest(str(value_of(key)), allowed)}"
            )
    unknown = [stage for stage in config.stages if stage not in STAGES]
    if unknown:
        raise UserError(
            f"stages: unknown stage {unknown[0]!r}{suggest(unknown[0], STAGES)}; expected some of {', '.join(STAGES)}"
        )
