"""The configuration of a run.

`config=NAME` names the file configs/NAME.yaml. The file is checked against the dataclasses below, and `key=value`
arguments override its values.

Every key has its type, its limits, its default value and its meaning here; the YAML files state what is special about a
run. The message about an unknown key names the nearest known key, and the message about a value of the wrong type names
the expected type. Only this file, its neighbours in cli/, and registry.py read a configuration.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from yaml.nodes import MappingNode

from learn2pd.cli.reading import key_of, parse, text_of
from learn2pd.cli.values import assign, build, interpret, plain, read_override
from learn2pd.errors import UserError, suggest
from learn2pd.files import shipped_folder
from learn2pd.kinds import option, shown

log = logging.getLogger(__name__)
Stage = Literal["record", "train", "calibrate", "reinforce", "compare"]
SCHEMAS = {
    "policy": "learn2pd.cli.config:RunConfig",
    "embedded": "learn2pd.embedded.config:EmbeddedConfig",
}  # class of a configuration by the key `job` of its file
ENDINGS = (".yaml", ".yml")  # of a configuration's file
BILLION = 10**9


@dataclass
class ModelConfig:
    """The diffusion language model."""

    path: str = option("checkpoints/tiny-llada", "name on the hub, or a folder", path=True)
    adapter: str | None = option(
        None, "peft adapter that is added into the model's weights: name on the hub, or a folder", path=True
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "type of the weights")
    device: str = option(
        "auto",
        "device of torch, such as cpu or cuda:0; auto takes a GPU where there is one; "
        "several, such as cuda:0,cuda:1, share the layers",
    )
    revision: str | None = option(None, "revision of a repository on the hub")
    family: str | None = option(None, "class of your own that reads the checkpoint, as package.module:Class")
    compile: bool = option(False, "use torch.compile: forwards are faster on a GPU, but the first ones are slow")
    quantization: Literal["int8", "nf4"] | None = option(
        None, "hold the matrices of the layers in 8 bits (int8, torchao) or 4 bits (nf4, bitsandbytes)"
    )


@dataclass
class DataConfig:
    """The prompts and the tasks that judge their answers."""

    source: Literal["tasks", "jsonl", "hub", "humaneval"] = option(
        "tasks",
        "tasks (built in), jsonl (the file data.path, also CSV, TSV or Parquet), hub (the data set data.path) "
        "or humaneval",
    )
    tasks: list[str] = option(["math", "json", "code"], "built-in tasks")
    domain: str | None = option(
        None,
        "built-in task or file that provides the train and validation prompts; null takes them from data.source",
        path=True,
    )
    path: str | None = option(None, "file, or name of a data set on the hub", path=True)
    validation_path: str | None = option(
        None, "file that holds the validation prompts; null takes them from data.path", path=True
    )
    test_path: str | None = option(
        None,
        "file that holds the test prompts, such as an official test split; null takes them from data.path",
        path=True,
    )
    subset: str | None = option(None, "subset of a data set on the hub")
    hub_split: str = option("train", "split of a data set on the hub")
    revision: str | None = option(None, "revision of a data set on the hub: a branch, tag or commit")
    prompt_field: str = option("question", "field that holds a text, or a list of messages with role and content")
    answer_field: str | None = option(None, "field that holds the right answer; without it no accuracy is reported")
    task: str = option(
        "final_number",
        "checker that compares an answer with the right one: final_number, slots, json, or package.module:Class",
    )
    skip_long: bool = option(
        False,
        "true leaves out prompts that are too long for the model; false refuses them before anything is recorded",
    )
    train_prompts: int = option(
        192, "number over all tasks together, where the tasks are built in", least=1, most=BILLION
    )
    validation_prompts: int = option(48, "the same for validation", least=1, most=BILLION)
    test_prompts: int = option(96, "the same for the comparison", least=1, most=BILLION)
    run_generated_code: bool = option(False, "lets the tasks code and humaneval run the model's output in a subprocess")


@dataclass
class DecodeConfig:
    """The settings that all decodes share."""

    gen_length: int = option(256, "length of the canvas, tokens", least=1, most=10**6)
    block_length: int = option(
        0, "tokens of a block; 0 takes the model's own blocks, or 32 where it has none", least=0, most=10**6
    )
    batch_size: int = option(16, "prompts that are decoded together", least=1, most=10**6)
    batch_invariant: bool = option(
        False,
        "true decodes every prompt in a batch of its own, which is slower, so that bfloat16 and float16 do not depend "
        "on batch_size",
    )
    stop_floor: float = option(
        0.5, "least confidence of the end-of-text that ends an answer (stop rule eot)", least=0, most=1
    )
    stop_strings: list[str] = option([], r'texts before which an answer ends (stop rule text), such as ["\n\n"]')
    given: list[Any] = option(
        [],
        "parts of every answer that stand from the start: texts, numbers of positions that the model fills, and null "
        'at the end for all positions that are left, such as ["The answer is ", 4, "."] or ["First,", null]',
    )
    temperature: float = option(0.0, "0 is greedy; recording is always greedy", least=0, most=1000)
    top_p: float = option(1.0, "share of the probability that sampling keeps", least=1e-9, most=1)
    top_k: int = option(0, "tokens that sampling keeps; 0 keeps all", least=0, most=BILLION)

    @property
    def rows_together(self) -> int:
        """The number of prompts that are decoded together."""
        return 1 if self.batch_invariant else self.batch_size


@dataclass
class RecordConfig:
    """The stage record."""

    shard_prompts: int = option(
        32, "prompts in each shard; an interruption costs each process at most one shard", least=1, most=BILLION
    )
    devices: int | str = option(
        1,
        "processes on each node, each with a GPU of its own; auto starts one for each GPU; under torchrun its numbers "
        "count",
        least=1,
        most=10**6,
    )
    num_nodes: int = option(1, "number of nodes", least=1, most=10**6)
    strategy: str = option("auto", "how Lightning Fabric starts the processes")
    exchange: str | None = option(
        None,
        "URL of fsspec, such as s3://bucket/run, through which nodes without a shared folder exchange their shards",
    )
    hidden_states: int = option(
        0,
        "numbers that are kept of the model's hidden state at each position of a window, as channels of the filter; 32 "
        "to 64 are a good number, and 0 keeps none",
        least=0,
        most=256,
    )
    top_tokens: bool = option(
        False,
        "keeps the four most probable tokens of each position of a window, so that the attention of filter=transformer "
        "depends on the overlap of two positions' distributions in place of equal proposals",
    )
    labels: Literal["reference", "own_answer", "continuation", "checked", "checked_together"] = option(
        "reference",
        "which proposals are right: reference: those of the answer with one token a step; own_answer: in rounds, those "
        "of the filter's own answer where it is right; continuation: what one token a step writes from this state; "
        "checked: what can be committed so that the checker accepts the answer that follows; checked_together: the "
        "same, committed together with what the continuation of this state confirms",
    )
    label_states: int = option(
        8, "most states of a prompt that are continued for their labels; 0 takes all", least=0, most=BILLION
    )
    label_positions: int = option(
        8, "most masked positions of such a state that are checked; 0 takes all", least=0, most=BILLION
    )


@dataclass
class PlanConfig:
    """What `--dry-run` assumes."""

    sample_prompts: int = option(
        0,
        "prompts that --dry-run records in memory to say what to expect; 0 records none and names bounds alone",
        least=0,
        most=BILLION,
    )
    nodes: int = option(0, "nodes of the run that is planned; 0 takes record.num_nodes", least=0, most=10**6)
    gpus_per_node: int = option(0, "GPUs of each node; 0 takes record.devices", least=0, most=10**6)
    price_per_hour: float = option(0.0, "price of one GPU for an hour; 0 names no cost", least=0, most=10**6)


@dataclass
class TrainConfig:
    """The stage train."""

    loss_on: Literal["answer", "masked", "all"] = option(
        "masked",
        "positions that the loss counts: masked, answer (masked ones without the padding) or all (committed ones too)",
    )
    learning_rate: float = option(3e-3, "learning rate of AdamW", least=1e-9, most=10)
    weight_decay: float = option(1e-2, "weight decay of AdamW", least=0, most=1000)
    batch_rows: int = option(
        256,
        "recorded states (a state is one prompt at one step) in each optimizer step",
        least=1,
        most=BILLION,
    )
    max_epochs: int = option(60, "most passes over the states", least=1, most=BILLION)
    patience_epochs: int = option(
        8, "passes without a lower validation loss after which the training stops", least=1, most=BILLION
    )
    start: Literal["scratch", "lora", "full"] = option(
        "scratch",
        "scratch trains a new network; lora trains an adapter on the filter in `policy`, full trains all its weights",
    )
    lora_rank: int = option(4, "rank of the adapter", least=1, most=1000)
    rounds: int = option(
        0,
        "how often the filter decodes the recorded prompts and a new one is trained on the states that were visited",
        least=0,
        most=100,
    )
    rollout_threshold: float = option(0.9, "threshold of the filter in those decodes", least=0, most=1)
    rollout_options: dict[str, Any] = option(
        {},
        "options of the filter in those decodes: those with which it will be used, for example {take_back: 0.3}, so "
        "that it learns from the states into which they lead",
    )
    predictors: list[str] = option([], "predictors trained beside the filter: end_of_text, boundary, keep")
    keep_rounds: int = option(
        2,
        "how often the prompts are decoded to train the predictor keep, each time with the network of the round before",
        least=1,
        most=100,
    )
    keep_threshold: float = option(
        0.9, "threshold of the filter in those decodes; a bold one makes mistakes to learn from", least=0, most=1
    )
    together: bool = option(
        False,
        "all processes of torchrun or of a cluster train each network together (DDP) and record the rounds together; "
        "false leaves both to the first process",
    )
    loggers: list[str] = option(
        ["csv"],
        "where the losses and figures of every epoch go: csv, tensorboard, wandb, or package.module:Class; every round "
        "is a run of its own",
    )


@dataclass
class CalibrateConfig:
    """The stage calibrate.

    Exactly one of the two targets must be set. A target says what a policy may lose against one token a step, when it
    decodes the validation prompts.
    """

    target_agreement: float | None = option(
        0.9, "share of the answer's tokens that must stay the same", least=0.0001, most=0.9999
    )
    max_accuracy_drop: float | None = option(
        None,
        "share of the answers that may become wrong, less the share that becomes right; it needs a checker",
        least=0.0001,
        most=0.9999,
    )
    confidence: float = option(0.9, "confidence of the bound that must meet the target", least=0.5, most=0.9999)
    thresholds: list[float] = option(
        [0.99, 0.97, 0.95, 0.9, 0.8, 0.65, 0.5],
        "thresholds of the filter, which are tried from the strictest to the fastest",
        least=0,
        most=1,
    )
    take_back: list[float] = option(
        [0.3],
        "thresholds of the predictor keep, each of which is tried with all thresholds of the filter",
        least=0,
        most=1,
    )
    one_more: float = option(
        1.0,
        "probability above which the policy keep commits one more position in every step; 1 commits none",
        least=0,
        most=1,
    )
    confidence_threshold: float = option(
        1.0,
        "confidence of the model above which keep commits whatever the filter says; 1 leaves it to the filter",
        least=0,
        most=1,
    )
    false_stops: float = option(
        0.05,
        "share of the answers that the end-of-text predictor may cut short; its bound has the same confidence",
        least=0.0001,
        most=0.9999,
    )


@dataclass
class ReinforceConfig:
    """The stage reinforce."""

    iterations: int = option(40, "how often the filter decodes and learns", least=1, most=BILLION)
    prompts: int = option(16, "training prompts of an iteration", least=1, most=BILLION)
    answers: int = option(8, "answers that are decoded for each of them", least=2, most=10**6)
    alpha: float = option(1.0, "weight of speed in the reward; 0 rewards right answers alone", least=0, most=1000)
    spread: float = option(
        0.5, "divisor of the log-odds above the threshold, from which commits are drawn", least=1e-3, most=1000
    )
    clip: float = option(
        0.2, "how far the probability of a step's commits may move before the step no longer counts", least=1e-3, most=1
    )
    passes: int = option(1, "how often the states of an iteration are learnt from", least=1, most=1000)
    batch_rows: int = option(512, "states in each optimizer step", least=1, most=BILLION)
    learning_rate: float = option(3e-4, "learning rate of AdamW", least=1e-9, most=10)
    validate_every: int = option(5, "iterations between validations", least=1, most=BILLION)
    threshold: float | None = option(
        None, "threshold whose commits have an even chance; null takes that of the filter", least=1e-6, most=1 - 1e-6
    )


@dataclass
class MethodConfig:
    """One method of a comparison (an entry of the key `compare.methods`)."""

    name: str = option("???", "name in the tables")
    policy: str = option(
        "???",
        "registered name or package.module:Class; `scheduler` and `cache` take the same. The names autoregressive, "
        "speculative and pearl decode with autoregressive models, which `options` names as target and draft",
    )
    options: dict[str, Any] = option({}, "options of the policy")
    scheduler: str = option("blocks", "scheduler")
    scheduler_options: dict[str, Any] = option({}, "options of the scheduler")
    cache: str = option("none", "cache")
    cache_options: dict[str, Any] = option({}, "options of the cache")
    sweep: dict[str, Any] = option(
        {},
        "one option of the policy with a list of values: each value becomes a method, and all of them form one curve",
    )
    group: str | None = option(
        None,
        "name shared by methods that differ only in the seed of their training; the tables show their mean and spread",
    )


@dataclass
class CompareConfig:
    """The stage compare."""

    methods: list[MethodConfig] = option(
        [], "methods, each {name: ..., policy: ..., options: {...}, scheduler: ..., cache: ..., sweep: {...}}"
    )
    stops: list[str] = option(["none", "eot"], "stop rules; every method is measured with each of them")
    bootstrap_samples: int = option(2000, "resamples of the prompts for the intervals", least=10, most=10**6)
    accuracy_margin: float = option(
        0.005,
        "share of the prompts that `fastest within` may lose against one token a step",
        least=0,
        most=1,
    )
    policy: str | None = option(
        None,
        "folder of the trained filter; null takes the filter of this run, after the stage reinforce where it is listed",
        path=True,
    )
    likelihood: bool = option(
        False,
        "add the exact likelihood of every answer by the policy's own order, which costs a forward for each token",
    )


@dataclass
class RunConfig:
    """The configuration of a run that trains and compares policies."""

    job: str = option("policy", "kind of the configuration: policy, or embedded (the training of an embedded model)")
    stages: list[Stage] = option(["record", "train", "calibrate", "compare"], "stages of `run` and of train.py")
    output_dir: str = option("outputs/${name}", "folder of the run", path=True)
    name: str = option("???", "is set from config=NAME")
    seed: int = option(0, "seed of everything that is random", least=0, most=2**32 - 1)
    threads: int = option(0, "number of CPU threads; 0 leaves the number to torch", least=0, most=4096)
    resume: bool = option(False, "continue in an output_dir that belongs to another configuration")
    overwrite: bool = option(False, "delete the outputs of an earlier run in output_dir")
    quiet: bool = option(False, "show results, warnings and errors alone, and no progress bar")
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    filter: Literal["mlp", "conv", "transformer"] = option(
        "transformer", "network of the filter: mlp (the paper's), conv or transformer"
    )
    filter_options: dict[str, Any] = option({}, "options of the filter's network: channels, hidden, layers, ...")
    policy: str | None = option(
        None,
        "folder of the trained filter that train.start=lora or full begins with, and the stage reinforce too; null "
        "lets the stage reinforce begin with the filter of this run",
        path=True,
    )
    train: TrainConfig = field(default_factory=TrainConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    reinforce: ReinforceConfig = field(default_factory=ReinforceConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)

    def __post_init__(self) -> None:
        listed: dict[str, Sequence[str]] = {
            "stages": self.stages,
            "train.predictors": self.train.predictors,
            "compare.stops": self.compare.stops,
        }
        for key, names in listed.items():
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise UserError(f"{key}={shown(names)}: {twice[0]!r} stands there twice; name it once")


def config_folders() -> tuple[Path, Path]:
    """Return the folders of configurations: `configs/` of the working directory, and that of the package."""
    return Path("configs"), shipped_folder("configs")


def config_names() -> list[str]:
    """Return the names of all configurations in `config_folders()`, sorted."""
    names = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in config_folders()
        for ending in ENDINGS
        for path in folder.rglob(f"*{ending}")
    }
    return sorted(names)


def config_path(name: str) -> Path:
    """Return the file of a configuration.

    Args:
        name: the name of a file in configs/ without its ending, or the path of a YAML file.

    Raises:
        UserError: there is no such file, or there are two.
    """
    asked = Path(name).expanduser() if name.startswith("~/") else Path(name)
    stem = name.removesuffix(asked.suffix) if asked.suffix in ENDINGS else name
    try:
        if asked.suffix in ENDINGS and asked.is_file():
            return asked
        places = ([folder / f"{stem}{ending}" for ending in ENDINGS] for folder in config_folders())
        paths = next(filter(None, ([path for path in place if path.is_file()] for place in places)), [])
    except OSError:  # a name of thousands of letters
        paths = []
    if not paths:
        raise UserError(
            f"config={name}: no such configuration{suggest(stem, config_names())}; "
            f"there are {', '.join(config_names())}"
        )
    if len(paths) > 1:
        raise UserError(f"config={name}: {paths[0]} and {paths[1]} have this name: rename one of them")
    return paths[0]


def load_config(name: str | None, overrides: Sequence[str] = ()) -> Any:
    """Load and check the configuration of a run.

    Args:
        name: the name of a file in configs/, or the path of a YAML file; None stands for the default of every key.
        overrides: `section.key=value` strings.

    Returns:
        A `RunConfig`, or an instance of the class that the file's key `job` stands for.

    Raises:
        UserError: the file does not exist or cannot be read, a key is unknown or stands in it twice, or a value has the
            wrong type or is out of its range.
    """
    if name is None:
        return apply_overrides({}, RunConfig, overrides, name="default")
    path = config_path(name)
    text = text_of(path)
    try:
        root = parse(text)
        schema = schema_of(root)
        tree = interpret(root, schema)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    config = apply_overrides(tree, schema, overrides, name=path.stem)
    if config.job != schema.job:
        stated = f"{path} is a configuration of job={schema.job}"
        raise UserError(f"job={config.job!r}: {stated}, which key=value cannot change")
    if config.resume and config.overwrite:
        raise UserError("resume=true and overwrite=true contradict each other: set one of them")
    return config


def apply_overrides(tree: dict[str, Any], schema: Any, overrides: Sequence[str], **defaults: Any) -> Any:
    """Make a configuration from the values of its file and from overrides.

    Args:
        tree: the values of the file by their keys; it is changed.
        schema: the dataclass of the configuration.
        overrides: `section.key=value` strings.
        defaults: values that replace defaults of the dataclass.

    Returns:
        An instance of `schema`.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or is out of its range.
    """
    given: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if given.get(key, value) != value:  # a script may have arguments of its own before those of its user
            log.warning("%s is given twice: %s counts, and not %s", key, shown(value), shown(given[key]))
        given[key] = value
        assign(tree, key, read_override(key, value, schema))
    return build(tree, schema, dataclasses.asdict(schema(**defaults)))


def schema_of(root: Any) -> Any:
    """Return the dataclass that a file is checked against.

    Args:
        root: the root of the file, from `parse`.

    Raises:
        UserError: the file's key `job` names no dataclass.
    """
    entries = root.value if isinstance(root, MappingNode) else []
    job = next((plain(value) for key, value in entries if key_of(key) == "job"), "policy")
    if not isinstance(job, str) or job not in SCHEMAS:
        raise UserError(f"job={shown(job)}: expected one of {', '.join(SCHEMAS)}{suggest(str(job), SCHEMAS)}")
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
    for key in ("job", "resume", "overwrite", "stages", "output_dir", "threads", "quiet", "plan"):
        described.pop(key, None)
    elsewhere = {
        "model": ("device", "compile"),
        "record": ("devices", "num_nodes", "strategy", "exchange"),
        "train": ("loggers", "together"),
    }
    for section, keys in elsewhere.items():
        for key in keys:
            described.get(section, {}).pop(key, None)
    return described


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dicts by their full keys.

    Args:
        tree: the dicts.
        prefix: is written before every key.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Compare two nested dicts.

    Args:
        old: the first one.
        new: the second one.
        prefix: is written before every key.

    Returns:
        The old and the new value of every leaf that differs, by its full key.
    """
    changed: dict[str, tuple[Any, Any]] = {}
    for key in sorted(old.keys() | new.keys()):
        before = old.get(key)
        after = new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed |= differences(before, after, f"{prefix}{key}.")
        elif before != after:
            changed[f"{prefix}{key}"] = (before, after)
    return changed
