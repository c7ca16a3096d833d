"""The command line: `learn2pd run|record|train|calibrate|compare|decode config=NAME [key=value ...]`.

A mistake that the user can mend is reported as one line on standard error, with exit code 2. An interruption has exit
code 130, and the same command continues the run.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from learn2pd.errors import UserError, suggest

log = logging.getLogger("learn2pd")
DRY_RUN = "--dry-run"
STAGE_COMMANDS = ("record", "train", "calibrate", "compare")
# Lightning sets the levels of its packages when it is imported, which happens after `quiet`. Its messages come from the
# first two loggers, which are modules of these packages, and Lightning does not change their levels.
CHATTY_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.pytorch",
    "lightning.fabric",
    "transformers",
    "datasets",
)
USAGE = (
    "usage: learn2pd COMMAND config=NAME [key=value ...]\n"
    "  run                              the stages the configuration lists (as train.py does)\n"
    f"  {'|'.join(STAGE_COMMANDS)}   one stage\n"
    "  run|record --dry-run             what recording would cost: prompts, forwards, disk, time; nothing is written\n"
    "  decode prompt='...' [policy=...] [live=true]   answer one prompt\n"
    "  doctor [config=NAME]             whether this machine can start a run, and what it lacks\n"
)


@dataclass
class DecodeOptions:
    """The arguments that `learn2pd decode` takes in addition to those of the configuration."""

    prompt: str = ""
    policy: str = ""  # folder of a trained policy, or a registered name; an empty text means the run's own policy
    options: str = "{}"  # options of a registered policy, for example '{threshold: 0.9}'
    scheduler: str = "blocks"
    scheduler_options: str = "{}"
    cache: str = "none"
    cache_options: str = "{}"
    stop: str = "eot"
    live: bool = False  # show the canvas while it fills in


def run(arguments: Sequence[str]) -> int:
    """Run all stages of a configuration, as `train.py` does.

    Args:
        arguments: `config=NAME` and overrides.

    Returns:
        The exit code.
    """
    return guarded(lambda: run_command("run", arguments))


def main() -> int:
    """Run the console script `learn2pd` and return its exit code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0
    return guarded(lambda: run_command(arguments[0], arguments[1:]))


def guarded(action: Callable[[], None]) -> int:
    """Run an action, and turn mistakes that users can mend into one line and an exit code.

    Args:
        action: the action.

    Returns:
        0 where the action succeeded, 2 after a mistake that the user can mend or with a full disk, 130 after an
        interruption.
    """
    quiet()
    try:
        action()
        return 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: finished work is kept, start the same command again to go on\n")
        return 130
    except OSError as error:
        if error.errno == errno.ENOSPC:
            sys.stderr.write(
                f"error: no space left on the disk ({error.filename or 'while writing'}): finished work is kept, "
                "free space and start again\n"
            )
            return 2
        raise


def quiet() -> None:
    """Send the log of this package to standard error, and hide messages of libraries that a user cannot act on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers|datasets)(\..*)?$")


def run_command(command: str, arguments: Sequence[str]) -> None:
    """Run one command of the command line.

    Args:
        command: the name of the command.
        arguments: the arguments after it.

    Raises:
        UserError: the user made a mistake that they can mend.
    """
    from learn2pd.cli.config import load_config, parse_arguments

    if command == "doctor":
        from learn2pd.cli.doctor import doctor

        doctor(arguments)
        return
    if command not in ("run", "decode", *STAGE_COMMANDS):
        known = ("run", "decode", "doctor", *STAGE_COMMANDS)
        raise UserError(f"unknown command {command!r}{suggest(command, known)}; expected one of {', '.join(known)}")
    dry = DRY_RUN in arguments
    if dry and command not in ("run", "record"):
        raise UserError(f"{DRY_RUN}: it says what recording would cost, for the commands run and record, not {command}")
    arguments = [argument for argument in arguments if argument != DRY_RUN]
    own, rest = split_decode_options(arguments) if command == "decode" else (DecodeOptions(), list(arguments))
    name, overrides = parse_arguments(rest)
    config = load_config(name, overrides)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    from learn2pd.cli import stages

    if config.job == "embedded":
        if command != "run" or dry:
            raise UserError(f"config={name} trains an embedded model: start it with python train.py config={name}")
        from learn2pd.cli.stages.pretraining import run_pretraining

        run_pretraining(config)
    elif dry:
        sys.stdout.write(stages.dry_run(config) + "\n")
    elif command == "decode":
        decode_one(config, own)
    else:
        stages.run_stages(config, None if command == "run" else command)


def split_decode_options(arguments: Sequence[str]) -> tuple[DecodeOptions, list[str]]:
    """Separate the options of `decode` from the other arguments.

    Args:
        arguments: the arguments of the command.

    Returns:
        The options, and the arguments that are left.

    Raises:
        UserError: a value has the wrong type.
    """
    options = DecodeOptions()
    rest = []
    kinds: dict[str, Any] = {entry.name: type(getattr(options, entry.name)) for entry in fields(DecodeOptions)}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in kinds:
            rest.append(argument)
            continue
        try:
            parsed = value if kinds[key] is str else yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = None
        if not isinstance(parsed, kinds[key]):  # every option is a text, which needs no check, or true or false
            raise UserError(f"{key}={value!r}: expected true or false")
        setattr(options, key, parsed)
    return options, rest


def parse_options(name: str, text: str) -> dict[str, Any]:
    """Parse the options of a component from YAML.

    Args:
        name: the name of the argument, for the message.
        text: a mapping in YAML.

    Raises:
        UserError: the text is not a mapping.
    """
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict):
        raise UserError(f"{name}={text!r}: expected a mapping, for example {name}='{{threshold: 0.9}}'")
    return options


def decode_one(config: Any, own: DecodeOptions) -> None:
    """Decode one prompt and print the answer; its figures are logged to standard error.

    Args:
        config: the configuration of the run.
        own: the options of `decode`.

    Raises:
        UserError: the prompt is empty, or the method cannot be built.
    """
    from learn2pd.cli.config import MethodConfig
    from learn2pd.cli.live import LiveCanvas
    from learn2pd.cli.stages.components import check_decoding, given_of, method_of, model_of, sampling_of
    from learn2pd.decoding import decode
    from learn2pd.registry import is_known

    if not own.prompt.strip():
        raise UserError("prompt is empty: give prompt='some text'")
    if own.policy == "oracle":
        raise UserError("policy='oracle' needs the answer beforehand: it is for recording and comparison")
    named = is_known("policy", own.policy)
    folder = Path(config.output_dir) / "policy" if own.policy in ("", "filter") else Path(own.policy)
    options = [parse_options(name, getattr(own, name)) for name in ("options", "scheduler_options", "cache_options")]
    model = model_of(config)
    method = MethodConfig(
        name="decode",
        policy=own.policy if named else "filter",
        options=options[0],
        scheduler=own.scheduler,
        scheduler_options=options[1],
        cache=own.cache,
        cache_options=options[2],
    )
    stop = "text" if config.decode.stop_strings and own.stop == DecodeOptions.stop else own.stop
    check_decoding(config, model, [stop])
    built = method_of(config, model, folder, method, stop)
    with LiveCanvas(model, shown=own.live) as canvas:
        result = decode(
            model,
            [own.prompt],
            built,
            gen_length=config.decode.gen_length,
            sampling=sampling_of(config),
            seed=config.seed,
            given=given_of(config, 1),
            observer=canvas,
        )
    sys.stdout.write(result.texts[0] + "\n")
    tokens = int(result.lengths[0])
    forwards = int(result.forwards[0])
    log.info(
        "%d tokens, %d forwards, %.2f tokens per forward, %.2f s",
        tokens,
        forwards,
        tokens / max(forwards, 1),
        result.wall_s,
    )
