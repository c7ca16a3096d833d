"""The command line: `learn2pd run|record|train|calibrate|compare|decode config=NAME [key=value ...]`.

Whatever the user can mend is one line on standard error and exit code 2; an interruption is exit code 130, and the same command goes on.
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
# Lightning sets the levels of its packages when it is imported, which is after `quiet`. The first two are modules of these
# packages that its messages come from, and their levels stay as they are set here.
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
)


@dataclass
class DecodeOptions:
    """What `learn2pd decode` takes beside the configuration."""

    prompt: str = ""
    policy: str = ""  # folder of a trained policy or a registered name; empty is the run's own policy
    options: str = "{}"  # of a registered policy, for example options='{threshold: 0.9}'
    scheduler: str = "blocks"
    scheduler_options: str = "{}"
    cache: str = "none"
    cache_options: str = "{}"
    stop: str = "eot"
    live: bool = False  # show the canvas filling in


def run(arguments: Sequence[str]) -> int:
    """`train.py`: all stages of a configuration."""
    return guarded(lambda: run_command("run", arguments))


def main() -> int:
    """The console script."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0
    return guarded(lambda: run_command(arguments[0], arguments[1:]))


def guarded(action: Callable[[], None]) -> int:
    """Run and turn what users can mend into one line and an exit code."""
    quiet()
    try:
        action()
        return 0
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: what is finished is kept, start the same command again to go on\n")
        return 130
    except OSError as error:
        if error.errno == errno.ENOSPC:
            sys.stderr.write(
                f"error: no space left on the disk ({error.filename or 'while writing'}): what is finished is kept, free space and start again\n"
            )
            return 2
        raise


def quiet() -> None:
    """Our own log on standard error; of the libraries only warnings that a user can act on."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", module=r"(lightning|torch|transformers|datasets)(\..*)?$")


def run_command(command: str, arguments: Sequence[str]) -> None:
    """Raises UserError for everything the user can mend."""
    from learn2pd.cli.config import load_config, parse_arguments

    if command not in ("run", "decode", *STAGE_COMMANDS):
        known = ("run", "decode", *STAGE_COMMANDS)
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
    """Take the options of `decode` out of the arguments.

    Raises:
        UserError: a value of the wrong type.
    """
    options, rest = DecodeOptions(), []
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
        if kinds[key] is float and isinstance(parsed, int) and not isinstance(parsed, bool):
            parsed = float(parsed)
        if not isinstance(parsed, kinds[key]):
            raise UserError(f"{key}={value!r}: expected {'true or false' if kinds[key] is bool else 'a number'}")
        setattr(options, key, parsed)
    return options, rest


def parse_options(name: str, text: str) -> dict[str, Any]:
    """Raises UserError where `text` is not a mapping in YAML."""
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict):
        raise UserError(f"{name}={text!r}: expected a mapping, for example {name}='{{threshold: 0.9}}'")
    return options


def decode_one(config: Any, own: DecodeOptions) -> None:
    """Decode one prompt and print the answer; figures go to standard error."""
    from learn2pd.cli.config import MethodConfig
    from learn2pd.cli.live import LiveCanvas
    from learn2pd.cli.stages.components import method_of, model_of, sampling_of
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
        name="decode", policy=own.policy if named else "filter", options=options[0], scheduler=own.scheduler, scheduler_options=options[1],
        cache=own.cache, cache_options=options[2],
    )  # fmt: skip
    built = method_of(config, model, folder, method, own.stop)
    with LiveCanvas(model, shown=own.live) as canvas:
        result = decode(
            model,
            [own.prompt],
            built,
            gen_length=config.decode.gen_length,
            sampling=sampling_of(config),
            seed=config.seed,
            observer=canvas,
        )
    sys.stdout.write(result.texts[0] + "\n")
    tokens, forwards = int(result.lengths[0]), int(result.forwards[0])
    log.info(
        "%d tokens, %d forwards, %.2f tokens per forward, %.2f s",
        tokens,
        forwards,
        tokens / max(forwards, 1),
        result.wall_s,
    )
