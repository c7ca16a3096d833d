"""Configuration: `config=NAME` -> configs/NAME.yaml -> the dataclasses below -> `key=value` overrides.

Every key has a type and a default here; the YAML files state what a run is about. A key that does not exist names its nearest
neighbour, a value of the wrong type names the type. Nothing outside this file, registry.py and stages/ reads a configuration.
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
}  # by the key `job` of a file


@dataclass
class ModelConfig:
    path: str = "checkpoints/tiny-llada"  # hub name or folder
    adapter: str | None = None  # of peft, trained on that model: hub name or folder, added into the weights
    dtype: str = "float32"  # float32, bfloat16, float16
    device: str = "auto"
    revision: str | None = None  # of a hub repository
    compile: bool = False  # torch.compile: faster forwards on a GPU after slow first ones


@dataclass
class DataConfig:
    source: str = "tasks"  # tasks (built in), jsonl (path=FILE, also CSV, TSV, Parquet), hub (path=NAME), humaneval
    tasks: list[str] = field(default_factory=lambda: ["math", "json", "code"])
    domain: str | None = (
        None  # a built-in task or a JSONL file: the only source of train and validation prompts; null is all of the above
    )
    path: str | None = None
    validation_path: str | None = None  # a file that holds the validation prompts; null takes them from path
    test_path: str | None = (
        None  # a file that holds the test prompts, such as an official test split; null takes them from path
    )
    subset: str | None = None  # of a hub data set
    hub_split: str = "train"
    prompt_field: str = "question"  # a text, or a list of messages with role and content
    answer_field: str | None = None  # field with the right answer; without it no accuracy is reported
    task: str = "final_number"  # checker that compares an answer with the right one: final_number, slots, json, or package.module:Class
    skip_long: bool = (
        False  # leave prompts out that are too long for the model; false refuses them before anything is recorded
    )
    train_prompts: int = 192  # built-in tasks: over all tasks together
    validation_prompts: int = 48
    test_prompts: int = 96
    run_generated_code: bool = False  # lets the tasks `code` and `humaneval` run model output in a limited subprocess


@dataclass
class DecodeConfig:
    gen_length: int = 256  # canvas, tokens
    block_length: int = 32
    batch_size: int = 16
    stop_floor: float = 0.5  # least confidence of the end-of-text that ends an answer (stop rule eot)
    temperature: float = 0.0  # 0 is greedy; recording is always greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is all


@dataclass
class RecordConfig:
    shard_prompts: int = 32  # prompts a shard: what an interruption costs at most
    devices: int | str = (
        1  # processes on a node, each with a GPU of its own; auto: one a GPU; torchrun's numbers go first
    )
    num_nodes: int = 1
    strategy: str = "auto"  # how Lightning Fabric starts them


@dataclass
class TrainConfig:
    loss_on: str = "masked"  # masked positions; answer: without the padding; all: committed ones too, as in the paper
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch_rows: int = 256  # recorded states (one prompt at one step) an optimizer step
    max_epochs: int = 60
    patience_epochs: int = 8
    start: str = (
        "scratch"  # scratch; from the filter in `policy`: lora trains an adapter on it, full all of its weights
    )
    lora_rank: int = 4
    rounds: int = 0  # times the filter decodes the recorded prompts, and trains again with the states it met
    rollout_threshold: float = 0.9  # of the filter in those decodes
    predictors: list[str] = field(default_factory=list)  # trained beside the filter: end_of_text, boundary


@dataclass
class CalibrateConfig:
    """What may be lost, in decodes of the validation prompts against one token a step; exactly one of the two."""

    target_agreement: float | None = 0.9  # share of the answer's tokens that stay the same
    max_accuracy_drop: float | None = (
        None  # share of the answers that become wrong, less those that become right; needs a checker
    )
    confidence: float = 0.9  # of the bound that must meet it
    thresholds: list[float] = field(
        default_factory=lambda: [0.99, 0.97, 0.95, 0.9, 0.8, 0.65, 0.5]
    )  # tried, from the strictest
    false_stops: float = 0.05  # the end-of-text predictor's: share of the answers that may be cut short, its bound with the same confidence


@dataclass
class MethodConfig:
    name: str = "???"
    policy: str = "???"  # registered name or package.module:Class, as for scheduler and cache
    options: dict[str, Any] = field(default_factory=dict)  # of the policy
    scheduler: str = "blocks"
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    cache: str = "none"
    cache_options: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, Any] = field(
        default_factory=dict
    )  # one option of the policy and its values: a method for each, joined to a curve
    group: str | None = (
        None  # methods of one group differ in the seed of their training only: the tables give their mean and spread
    )


@dataclass
class CompareConfig:
    methods: list[MethodConfig] = field(default_factory=list)
    stops: list[str] = field(default_factory=lambda: ["none", "eot"])
    bootstrap_samples: int = 2000
    accuracy_margin: float = 0.005  # share of the prompts that `fastest within` may lose against one token a step
    policy: str | None = None  # folder of the trained filter; None is this run's own


@dataclass
class RunConfig:
    job: str = "policy"  # what the file configures: policy, or embedded (the training of an embedded model)
    stages: list[str] = field(default_factory=lambda: ["record", "train", "calibrate", "compare"])
    output_dir: str = "outputs/${name}"
    name: str = "???"  # set from config=NAME
    seed: int = 0
    threads: int = 0  # CPU threads; 0 leaves torch's choice
    resume: bool = False  # go on in an output_dir of another configuration
    overwrite: bool = False  # delete what an earlier run left in output_dir
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    filter: str = "transformer"  # network: mlp (the paper's), conv, transformer
    filter_options: dict[str, Any] = field(default_factory=dict)  # of the network: channels, hidden, layers, ...
    policy: str | None = None  # folder of the trained filter that train.start=lora or full begins with
    train: TrainConfig = field(default_factory=TrainConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)


# least and largest allowed values; what a component checks itself is not repeated here
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
    """`configs/` of the working directory, else of the repository this package lies in."""
    here = Path("configs")
    return here if here.is_dir() else Path(__file__).resolve().parents[2] / "configs"


def parse_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Split `config=NAME key=value ...` into the name and the overrides.

    Raises:
        UserError: for an argument that is not key=value, or no config.
    """
    name, overrides = "", []
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
    return sorted(path.stem for path in config_folder().rglob("*.yaml"))


def load_config(name: str, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a run, checked: a `RunConfig`, or what the file's key `job` stands for.

    Args:
        name: of a file in configs/, or the path of a YAML file.
        overrides: `section.key=value` strings.

    Raises:
        UserError: unknown name, unknown or mistyped key, value out of range.
    """
    path = Path(name) if name.endswith(".yaml") else config_folder() / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"config={name}: no such configuration{suggest(name, config_names())}; there are {', '.join(config_names())}"
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
    """The dataclass that a file is checked against.

    Raises:
        UserError: its key `job` names none.
    """
    job = written.get("job", "policy") if isinstance(written, dict) else "policy"
    if not isinstance(job, str) or job not in SCHEMAS:
        raise UserError(f"{path}: job={job!r}: expected one of {', '.join(SCHEMAS)}{suggest(str(job), SCHEMAS)}")
    module, _, name = SCHEMAS[job].partition(":")
    return getattr(importlib.import_module(module), name)


def as_dict(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def identity(config: Any) -> dict[str, Any]:
    """What makes two runs the same run: everything that can change a result."""
    described = as_dict(config)
    for key in ("job", "resume", "overwrite", "stages", "output_dir", "threads"):
        described.pop(key, None)
    for section, keys in {"model": ("device", "compile"), "record": ("devices", "num_nodes", "strategy")}.items():
        for key in keys:
            described.get(section, {}).pop(key, None)
    return described


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every leaf that differs."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return found


def _field_type(owner: type, key: str) -> Any:
    return typing.get_type_hints(owner)[key]


def _keys(owner: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its annotation."""
    for entry in dataclasses.fields(owner):
        kind = _field_type(owner, entry.name)
        yield prefix + entry.name, kind
        if dataclasses.is_dataclass(kind):
            yield from _keys(cast(type, kind), f"{prefix}{entry.name}.")


def _check_key(key: str, where: str, schema: type) -> None:
    known = dict(_keys(schema))
    free = (
        f"{name}." for name, kind in known.items() if typing.get_origin(kind) is dict
    )  # options of a component, which checks them itself
    if key not in known and not key.startswith(tuple(free)):
        last = [other for other in known if other.split(".")[-1] == key.split(".")[-1]]
        hint = f"; did you mean {last[0]!r}" if last else suggest(key, known)
        raise UserError(f"{where}{key}: unknown key{hint}")


def _check_tree(tree: Any, owner: type, prefix: str, where: str, schema: type) -> None:
    """Walk a plain tree beside the dataclasses: unknown keys and wrong types, by their full name."""
    if not isinstance(tree, dict):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'the file'} must hold keys and values, got {tree!r}")
    names = [entry.name for entry in dataclasses.fields(owner)]
    for key, value in tree.items():
        if key not in names:
            if owner is MethodConfig:
                raise UserError(
                    f"{where}: {prefix}{key}: unknown key{suggest(str(key), names)} ; expected {', '.join(names)}"
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
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        return found

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
