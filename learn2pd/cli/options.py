"""The arguments that single commands take in addition to those of the configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from learn2pd.kinds import option
from learn2pd.registry import COMPONENTS, EXPORTERS, INFORMED


def _names(role: str, *without: str) -> str:
    """Word which components of a role there are."""
    return f"{', '.join(name for name in COMPONENTS[role] if name not in without)}, or package.module:Class"


@dataclass
class MethodOptions:
    """The arguments of commands that decode with one method."""

    model: str | None = option(
        None, "short for model.path: name on the hub, or a folder; null takes model.path", path=True
    )
    policy: str | None = option(
        None,
        f"folder of a trained policy, or {_names('policy', *INFORMED, 'filter')}; null takes the trained "
        "policy of the configuration's run, else the shipped policy where it fits the model, else threshold",
        path=True,
    )
    options: dict[str, Any] = option({}, "options of the policy, for example {threshold: 0.9}")
    scheduler: str = option("blocks", _names("scheduler"))
    scheduler_options: dict[str, Any] = option({}, "options of the scheduler")
    cache: str = option("none", _names("cache"))
    cache_options: dict[str, Any] = option({}, "options of the cache")
    stop: str | None = option(
        None, f"stop rule: {_names('stop')}; null takes text where decode.stop_strings is set, else eot"
    )


@dataclass
class DecodeOptions(MethodOptions):
    """The arguments of `learn2pd decode`."""

    prompt: str = option("", "text to answer; it may also stand alone, without prompt=", verbatim=True)
    live: bool = option(False, "show the canvas while it fills in")


@dataclass
class EvalOptions(MethodOptions):
    """The arguments of `learn2pd eval`."""

    tasks: list[str] | str | None = option(
        [], "names of lm-eval's tasks or groups, or of those in include_path: one name, or a list"
    )
    include_path: str | None = option(None, "folder that holds task files (.yaml) of your own", path=True)
    output_dir: str = option(
        "outputs/eval", "folder of the results, the answers and the file of known answers", path=True
    )
    overwrite: bool = option(False, "replace results of another model, method or other tasks in output_dir")
    limit: int | None = option(None, "questions of each task; null takes all", least=1, most=10**9)
    fewshot: int | None = option(
        None, "examples before each question; null takes the task's number", least=0, most=1000
    )
    chat: bool | None = option(None, "use the chat template; null uses it where the tokenizer has one")
    system: str | None = option(None, "text of a system message", verbatim=True)
    gen_length: int | None = option(
        None, "length of the canvas, tokens; null takes what each task allows for an answer", least=1, most=10**6
    )
    likelihood_samples: int = option(
        128, "samples for each answer whose likelihood is estimated; short answers are exact", least=1, most=10**6
    )


@dataclass
class CheckOptions(MethodOptions):
    """The arguments of `learn2pd check`."""

    prompts: list[str] | str | None = option(
        None,
        "fresh prompts: built-in tasks, such as [math, json], or a file, whose fields the keys of data name; null "
        "takes data.tasks",
        path=True,
    )
    count: int = option(24, "prompts that are decoded", least=2, most=10**6)
    reference: bool = option(
        True, "compare with the model in float32 on the CPU, which takes the memory and the time of one more model"
    )
    least_agreement: float = option(
        0.9, "share of the tokens that must be those of float32 on the CPU", least=0, most=1
    )


@dataclass
class ZooOptions:
    """The arguments of `learn2pd zoo`."""

    owner: str = option("learn2pd", "organisation or user of the hub whose models, policies and prompt sets are listed")


@dataclass
class ExportOptions:
    """The arguments of `learn2pd export`."""

    to: str | None = option(None, f"the engine: {', '.join(EXPORTERS)}")
    policy: str | None = option(None, "folder of a trained policy, or its name on the hub", path=True)
    output_dir: str | None = option(None, "folder to write; it must not hold any file yet", path=True)
    options: dict[str, Any] = option({}, "options of the engine's exporter, see docs/engines.md")


@dataclass
class ServeOptions(MethodOptions):
    """The arguments of `learn2pd serve`."""

    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 is every network of this machine")
    port: int = option(8000, "port to listen at; 0 takes a free one", least=0, most=65535)
    api_key: str | None = option(None, "key that every request must bring, for example ${oc.env:NAME}")
    queue: int = option(1024, "most requests that wait for a row", least=1, most=10**6)
    max_prompt: int | None = option(
        None, "most tokens of a prompt; null allows what the model takes", least=1, most=10**6
    )
    max_length: int | None = option(
        None, "most tokens of an answer; null allows what the model takes", least=1, most=10**6
    )
    max_body: int = option(2**20, "most bytes of a request", least=1, most=2**30)
    patience: float = option(20.0, "seconds in which a request must have arrived", least=0.1, most=3600)


OWN: dict[str, type] = {
    "decode": DecodeOptions,
    "eval": EvalOptions,
    "check": CheckOptions,
    "zoo": ZooOptions,
    "export": ExportOptions,
    "serve": ServeOptions,
}


def is_own(command: str, key: str) -> bool:
    """Say whether a key belongs to the command itself, and not to the configuration.

    Args:
        command: The name of the command.
        key: The key, such as `options.threshold` or `model.dtype`.
    """
    if command not in OWN:
        return False
    first, dot, _ = key.partition(".")
    kinds = {entry.name: entry.type for entry in dataclasses.fields(OWN[command])}
    return first in kinds and (not dot or str(kinds[first]).startswith("dict"))


def own_options(command: str, arguments: Sequence[str]) -> Any:
    """Return the options of a command.

    Args:
        command: The name of the command.
        arguments: Its own arguments, each key=value.

    Returns:
        An instance of its dataclass in `OWN`; None where the command has no arguments of its own.

    Raises:
        UserError: A key is unknown, or a value has the wrong type.
    """
    from learn2pd.cli.config import apply_overrides

    return apply_overrides({}, OWN[command], arguments) if command in OWN else None
