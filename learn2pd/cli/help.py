"""The help of the command line, which is made from the dataclasses of the configuration."""

from __future__ import annotations

import dataclasses
import math
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any

import yaml

from learn2pd.cli.reading import plain_value
from learn2pd.cli.values import keys_of
from learn2pd.kinds import number_text, type_name

DRY_RUN = "--dry-run"
QUIET = "--quiet"  # the same as quiet=true
GRAMMAR = "key=value"


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of the command line."""

    arguments: str  # as the usage line shows them
    meaning: str
    example: str
    dry_run: bool = False  # takes --dry-run
    configless: bool = False  # needs no config=NAME
    configured: bool = True  # takes the keys of the configuration


STAGE = f"config=NAME [{GRAMMAR} ...]"
COMMANDS = {
    "decode": Command(
        f'"PROMPT" [config=NAME] [{GRAMMAR} ...]',
        "Answer one prompt. Without config=NAME the embedded model answers.",
        'learn2pd decode "What is 3 plus 4?" live=true',
        configless=True,
    ),
    "serve": Command(
        f"[config=NAME] [{GRAMMAR} ...]",
        "Answer requests of OpenAI's interface over HTTP. Without config=NAME the embedded model answers.",
        "learn2pd serve port=8000",
        configless=True,
    ),
    "run": Command(
        f"{STAGE} [{DRY_RUN}]",
        "Run the stages that a configuration lists, as train.py does.",
        "learn2pd run config=tiny_filter train.max_epochs=10",
        dry_run=True,
    ),
    "record": Command(
        f"{STAGE} [{DRY_RUN}]",
        "Run the stage record: the oracle's states of the train and validation prompts.",
        "learn2pd record config=tiny_filter --dry-run",
        dry_run=True,
    ),
    "train": Command(
        STAGE,
        "Run the stage train: the filter and the other predictors, on a finished recording.",
        "learn2pd train config=tiny_filter",
    ),
    "calibrate": Command(
        STAGE,
        "Run the stage calibrate: thresholds that keep to a target, and the export of the policy.",
        "learn2pd calibrate config=tiny_filter calibrate.target_agreement=0.9",
    ),
    "reinforce": Command(
        STAGE,
        "Run the stage reinforce: the filter decodes, and learns from which answers were right and fast.",
        "learn2pd reinforce config=tiny_reinforce",
    ),
    "compare": Command(
        f"{STAGE} [{DRY_RUN}]",
        "Run the stage compare: every method and stop rule on the test prompts, with tables and plots.",
        "learn2pd compare config=tiny_compare",
        dry_run=True,
    ),
    "eval": Command(
        f"tasks=NAMES [config=NAME] [{GRAMMAR} ...]",
        "Measure a model and a method with tasks of the lm-evaluation-harness. Without config=NAME the embedded model "
        "answers.",
        "learn2pd eval tasks=gsm8k model=GSAI-ML/LLaDA-8B-Instruct policy=outputs/llada_filter/policy limit=100",
        configless=True,
    ),
    "check": Command(
        f"[config=NAME] [{GRAMMAR} ...]",
        "Check on this machine what is promised about a model and a method; exit code 1 where something does not hold.",
        "learn2pd check model=checkpoints/tiny-llada policy=checkpoints/tiny-llada-filter",
        configless=True,
    ),
    "zoo": Command(
        "[owner=NAME]",
        "List the models, policies and configurations that ship, and what an organisation of the hub holds.",
        "learn2pd zoo owner=learn2pd",
        configless=True,
        configured=False,
    ),
    "export": Command(
        "to=ENGINE policy=FOLDER output_dir=FOLDER",
        "Write a trained policy as files that an engine reads, and say how they are used.",
        "learn2pd export to=transformers policy=checkpoints/tiny-llada-filter output_dir=outputs/exported",
        configless=True,
        configured=False,
    ),
    "report": Command(
        f"config=NAME [{GRAMMAR} ...] or output_dir=FOLDER",
        "Make report.html of a run again from its files. Nothing is decoded, and an interrupted run may be reported.",
        "learn2pd report output_dir=outputs/tiny_compare",
        configless=True,
    ),
    "doctor": Command(
        f"[{STAGE}]",
        "Say whether this machine can start a run, and what it lacks. Without config=NAME it is config=tiny_filter.",
        "learn2pd doctor config=llada_filter",
        configless=True,
    ),
}
RULES = f"""\
Arguments are written {GRAMMAR}. A list is [a, b], a mapping is {{a: 1, b: 2}}, nothing is null, and one entry of a list
is compare.methods[0].name=x. In a shell, put quotes around the whole argument. ~ is the home folder, ${{key}} is the
value of another key, and ${{oc.env:NAME}} is a variable of the environment."""


def overview() -> str:
    """Return the help of the whole command line."""
    lines = [f"usage: learn2pd COMMAND [{GRAMMAR} ...]", "", "commands:"]
    lines += [f"  {name:10} {command.meaning}" for name, command in COMMANDS.items()]
    lines += ["", "learn2pd COMMAND --help lists the options of a command; learn2pd --version prints the version."]
    return "\n".join([*lines, "", RULES, ""])


def help_of(name: str, own: type | None, config: Any, described: str) -> str:
    """Return the help of one command, with every option, its type, its default and its meaning.

    Args:
        name: the name of the command.
        own: the dataclass of the options that this command alone takes, or None.
        config: the configuration whose values are shown as defaults.
        described: names the configuration.
    """
    command = COMMANDS[name]
    lines = [
        f"usage: learn2pd {name} {command.arguments}",
        "",
        command.meaning,
        f"example: {command.example}",
        "",
        RULES,
    ]
    lines += ["", "flags:", "  --help       show this help"]
    lines.append(f"  {QUIET}      show results, warnings and errors alone, and no progress bar; the same as quiet=true")
    if command.dry_run:
        lines.append(f"  {DRY_RUN}    say what recording would cost: prompts, forwards, disk, time; nothing is written")
    if own is not None:
        lines += ["", f"options of {name}:", *_options(own, own())]
        # in this command the key has the meaning above, and not that of the configuration
        hidden = {entry.name for entry in dataclasses.fields(own)}
    else:
        hidden = set()
    if command.configured:
        lines += [
            "",
            f"keys of the configuration, with the values of {described}:",
            *_options(type(config), config, hidden),
        ]
    return "\n".join([*lines, ""])


def _options(schema: type, values: Any, hidden: set[str] | None = None) -> Iterator[str]:
    """Yield the lines of all keys of a dataclass."""
    columns = min(max(shutil.get_terminal_size().columns, 60), 120)
    for key in keys_of(schema):
        if key.is_section or key.name in (hidden or set()):
            continue
        value = values
        for part in key.name.split("."):
            value = getattr(value, part)
        yield f"  {key.name}={written(value)}"
        facts = [type_name(key.kind) + _limits(key.field), key.field.metadata.get("meaning", "")]
        yield from textwrap.wrap(
            ". ".join(fact for fact in facts if fact), columns, initial_indent="      ", subsequent_indent="      "
        )


def _limits(entry: dataclasses.Field[Any]) -> str:
    least = entry.metadata.get("least")
    return "" if least is None else f" from {number_text(least)} to {number_text(entry.metadata['most'])}"


def written(value: Any) -> str:
    """Return a value as a user would write it on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        defaults = {entry.name: entry for entry in dataclasses.fields(value)}
        value = {key: given for key, given in vars(value).items() if not _is_default(defaults[key], given)}
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {written(inner)}' for key, inner in value.items())}}}"
    if not isinstance(value, str):
        return str(value)
    plain = value.isprintable() and plain_value(value) == value and not any(mark in value for mark in ",:#[]{}'\"")
    return value if plain else yaml.safe_dump(value, default_style='"', allow_unicode=True, width=math.inf).strip()


def _is_default(entry: dataclasses.Field[Any], value: Any) -> bool:
    if entry.default_factory is not dataclasses.MISSING:
        return bool(value == entry.default_factory())
    return bool(value == entry.default)
