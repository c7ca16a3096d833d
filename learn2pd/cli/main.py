"""The command line: `learn2pd COMMAND [config=NAME] [key=value ...]`.

A mistake that the user can mend is reported as one line on standard error, with exit code 2. An interruption has exit
code 130, and the same command continues the run.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from learn2pd import __version__
from learn2pd.cli.help import COMMANDS, DRY_RUN, QUIET, help_of, overview
from learn2pd.errors import UserError, suggest
from learn2pd.files import here_or_shipped
from learn2pd.kinds import option
from learn2pd.registry import COMPONENTS

log = logging.getLogger("learn2pd")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # numbers of this process, by launcher
CLOSED_PIPE = 141  # 128 and the number of the signal SIGPIPE, as a shell says
HELP = ("-h", "--help")
SHIPPED_FILTER = "checkpoints/tiny-llada-filter"  # trained for the embedded model
DOCTORS_CONFIG = "tiny_filter"  # the main job, which `doctor` looks at where no configuration is named
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


def _names(role: str, *without: str) -> str:
    """Word which components of a role there are."""
    return f"{', '.join(name for name in COMPONENTS[role] if name not in without)}, or package.module:Class"


@dataclass
class DecodeOptions:
    """The arguments that `learn2pd decode` takes in addition to those of the configuration."""

    prompt: str = option("", "text to answer; it may also stand alone, without prompt=", verbatim=True)
    policy: str | None = option(
        None,
        f"folder of a trained policy, or {_names('policy', 'oracle', 'search', 'filter')}; null takes the trained "
        "policy of the configuration's run, else the shipped filter where it fits the model, else threshold",
        path=True,
    )
    options: dict[str, Any] = option({}, "options of the policy, for example {threshold: 0.9}")
    scheduler: str = option("blocks", _names("scheduler"))
    scheduler_options: dict[str, Any] = option({}, "options of the scheduler")
    cache: str = option("none", _names("cache"))
    cache_options: dict[str, Any] = option({}, "options of the cache")
    stop: str = option("eot", f"stop rule: {_names('stop')}")
    live: bool = option(False, "show the canvas while it fills in")


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
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in (*HELP, "help"):
        command, arguments = (arguments[0], ["--help"]) if arguments else ("", [])
    if command == "":
        return guarded(lambda: print_text(overview()))
    if command == "--version":
        return guarded(lambda: print_text(f"learn2pd {__version__}"))
    return guarded(lambda: run_command(command, arguments))


def guarded(action: Callable[[], None]) -> int:
    """Run an action, and turn mistakes that users can mend into one line and an exit code.

    Args:
        action: the action.

    Returns:
        0 where the action succeeded, 2 after a mistake that the user can mend or with a full disk, 130 after an
        interruption, and 141 where the reader of the output has gone.
    """
    open_streams()
    quiet()
    try:
        action()
        sys.stdout.flush()
        return 0
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: finished work is kept, start the same command again to go on\n")
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` has
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        return CLOSED_PIPE
    except OSError as error:
        if error.errno == errno.ENOSPC:
            sys.stderr.write(
                f"error: no space left on the disk ({error.filename or 'while writing'}): finished work is kept, "
                "free space and start again\n"
            )
            return 2
        raise


def open_streams() -> None:
    """Make sure that every text can be written: what a terminal cannot show is written with backslashes."""
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # it is None where it is closed
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
    if command not in COMMANDS:
        raise UserError(
            f"unknown command {command!r}{suggest(command, COMMANDS)}; expected one of {', '.join(COMMANDS)}"
        )
    from learn2pd.cli.config import load_config

    given = read_arguments(command, arguments)
    if given.help:
        print_text(help_text(command, given))
        return
    own = decode_options(given.own)
    if command == "doctor":
        from learn2pd.cli.doctor import doctor

        doctor(given.config or DOCTORS_CONFIG, given.overrides)
        return
    config = load_config(given.config, given.overrides)
    if config.quiet:
        log.setLevel(logging.WARNING)
    check_launcher()
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    from learn2pd.cli import stages

    if config.job == "embedded":
        if command != "run" or given.dry_run:
            raise UserError(
                f"config={given.config} trains an embedded model: start it with python train.py config={given.config}"
            )
        from learn2pd.cli.stages.pretraining import run_pretraining

        run_pretraining(config)
    elif given.dry_run:
        print_text(stages.dry_run(config))
    elif command == "report":
        print_text(str(stages.write_report(Path(config.output_dir))))
    elif command == "decode":
        decode_one(config, own, has_run=given.config is not None)
    else:
        stages.run_stages(config, None if command == "run" else command)


@dataclass(frozen=True)
class Arguments:
    """The arguments of a command, sorted out."""

    config: str | None  # NAME of config=NAME
    overrides: list[str]  # key=value of the configuration
    own: list[str]  # key=value of DecodeOptions
    dry_run: bool
    help: bool


def read_arguments(command: str, arguments: Sequence[str]) -> Arguments:
    """Sort out the arguments of a command.

    Args:
        command: the name of the command.
        arguments: the arguments after it.

    Raises:
        UserError: an argument is not of the form key=value, no configuration is named although the command needs one,
            or the command does not take a flag.
    """
    from learn2pd.cli.config import RunConfig, config_names

    configured = [entry.name for entry in fields(RunConfig)]
    own_keys = [entry.name for entry in fields(DecodeOptions)] if command == "decode" else []
    names: list[str] = []
    overrides: list[str] = []
    own: list[str] = []
    prompts: list[str] = []
    for argument in (argument for argument in arguments if argument not in (DRY_RUN, QUIET, *HELP)):
        key, equals, value = argument.partition("=")
        if equals and key == "config":
            names.append(value)
        elif equals and key.partition(".")[0] in own_keys:
            own.append(argument)
        elif equals and is_key(key):
            if key not in configured and (near := suggest(key, own_keys)):
                raise UserError(f"{key}: unknown key{near}")
            overrides.append(argument)
        elif command == "decode" and not argument.startswith("-"):
            prompts.append(argument)
        else:
            raise UserError(_misunderstood(argument))
    helps = any(flag in arguments for flag in HELP)
    if QUIET in arguments:
        overrides.append("quiet=true")
    if DRY_RUN in arguments and not COMMANDS[command].dry_run:
        takers = " and ".join(name for name, taker in COMMANDS.items() if taker.dry_run)
        raise UserError(f"{DRY_RUN}: it says what recording would cost, for the commands {takers}, not {command}")
    if len(names) > 1:
        raise UserError(f"config is given twice: {names[0]} and {names[1]}; give one of them")
    if not names and not COMMANDS[command].configless and not helps:
        raise UserError(f"no config=NAME given; there are {', '.join(config_names())}")
    own += [f"prompt={prompt}" for prompt in prompts]
    texts = [argument.removeprefix("prompt=") for argument in own if argument.startswith("prompt=")]
    if len(texts) > 1:
        raise UserError(f"several prompts are given, {texts[0]!r} and {texts[1]!r}: put quotes around one prompt")
    return Arguments(names[0] if names else None, overrides, own, DRY_RUN in arguments, helps)


def is_key(text: str) -> bool:
    """Say whether the text before an equals sign can be a key. Before one within a prompt, words stand."""
    return text.isascii() and text[:1].isalpha() and all(c.isalnum() or c in "_.[]" for c in text)


def _misunderstood(argument: str) -> str:
    """Word the message about an argument that is not of the form key=value."""
    key, _, value = argument.partition("=")
    if argument.startswith("-"):
        flags = suggest(argument, (DRY_RUN, QUIET, "--help"))
        if flags:
            return f"argument {argument!r}: unknown flag{flags}"
    meant = f"{key.lstrip('-').replace('-', '_')}={value or 'VALUE'}"
    return f"argument {argument!r}: arguments are written key=value, for example {meant}"


def decode_options(arguments: Sequence[str]) -> DecodeOptions:
    """Return the options of `decode`.

    Args:
        arguments: its arguments, each key=value.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    from learn2pd.cli.config import apply_overrides

    options: DecodeOptions = apply_overrides({}, DecodeOptions, arguments)
    return options


def help_text(command: str, given: Arguments) -> str:
    """Return the help of a command, with the values of the configuration that the arguments name, if any."""
    from learn2pd.cli.config import load_config

    described = f"config={given.config}" if given.config else "their defaults"
    own = DecodeOptions if command == "decode" else None
    return help_of(command, own, load_config(given.config, given.overrides), described)


def check_launcher() -> None:
    """Check the variables of launchers that Lightning reads as numbers when it is imported.

    Raises:
        UserError: one of them is not a number.
    """
    for name in RANKS:
        text = os.environ.get(name, "0")
        if not text.isdecimal():
            raise UserError(f"the variable {name}={text!r} of the environment: expected a number; unset it")


def print_text(text: str) -> None:
    """Write a text and the end of its line to standard output."""
    sys.stdout.write(text.removesuffix("\n") + "\n")


def decode_one(config: Any, own: DecodeOptions, has_run: bool) -> None:
    """Decode one prompt and print the answer; its figures are logged to standard error.

    Args:
        config: the configuration.
        own: the options of `decode`.
        has_run: the configuration was named, so its output_dir may hold a trained policy.

    Raises:
        UserError: the prompt is empty, or the method cannot be built.
    """
    from learn2pd.cli.config import MethodConfig
    from learn2pd.cli.live import LiveCanvas
    from learn2pd.cli.stages.components import check_decoding, given_of, method_of, model_of, sampling_of
    from learn2pd.decoding import decode

    if not own.prompt.strip():
        raise UserError('prompt is empty: give learn2pd decode "some text"')
    if own.policy in ("oracle", "search"):
        raise UserError(f"policy={own.policy!r} needs the answer beforehand: it is for recording and comparison")
    model = model_of(config)
    policy, folder = policy_of(config, own, has_run)
    method = MethodConfig(
        name="decode",
        policy=policy,
        options=own.options,
        scheduler=own.scheduler,
        scheduler_options=own.scheduler_options,
        cache=own.cache,
        cache_options=own.cache_options,
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
    print_text(result.texts[0])
    tokens = int(result.lengths[0])
    forwards = int(result.forwards[0])
    log.info(
        "%d tokens, %d forwards, %.2f tokens per forward, %.2f s",
        tokens,
        forwards,
        tokens / max(forwards, 1),
        result.wall_s,
    )


def policy_of(config: Any, own: DecodeOptions, has_run: bool) -> tuple[str, Path]:
    """Return the name of the policy that `decode` uses, and the folder of the trained filter.

    Without `policy`, the trained policy of the run is used where there is one; else the shipped filter, if the
    model is the embedded one that it was trained for; else the rule `threshold`.

    Args:
        config: the configuration.
        own: the options of `decode`.
        has_run: the configuration was named, so its output_dir may hold a trained policy.

    Raises:
        UserError: the policy is neither a registered name nor a folder.
    """
    from learn2pd.cli.config import ModelConfig
    from learn2pd.registry import is_known

    run = Path(config.output_dir) / "policy"
    if own.policy == "filter":
        return "filter", run
    if own.policy is not None and is_known("policy", own.policy):
        return own.policy, run
    if own.policy is not None:
        near = suggest(own.policy, COMPONENTS["policy"])
        if near and not Path(own.policy).is_dir():
            known = ", ".join(COMPONENTS["policy"])
            raise UserError(
                f"policy={own.policy!r}: no such folder or name{near}; expected a folder, or one of {known}"
            )
        return "filter", Path(own.policy)
    if has_run and run.is_dir():
        log.info("policy: the trained filter in %s", run)
        return "filter", run
    shipped = Path(here_or_shipped(SHIPPED_FILTER))
    if shipped.is_dir() and config.model == ModelConfig(dtype=config.model.dtype, device=config.model.device):
        log.info("policy: the shipped filter in %s", shipped)
        return "filter", shipped
    log.info("policy: threshold, since no trained filter belongs to this model; give policy=FOLDER for one of yours")
    return "threshold", run
