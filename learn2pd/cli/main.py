"""The command line: `learn2pd COMMAND [config=NAME] [key=value ...]`.

A mistake that the user can mend is reported as one line on standard error, with exit code 2. An interruption has exit
code 130, and the same command continues the run.
"""

from __future__ import annotations

import errno
import gc
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from learn2pd import __version__
from learn2pd.cli.help import COMMANDS, DRY_RUN, QUIET, help_of, overview
from learn2pd.cli.options import OWN, DecodeOptions, ExportOptions, is_own, own_options
from learn2pd.errors import UserError, suggest

log = logging.getLogger("learn2pd")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # numbers of this process, by launcher
CLOSED_PIPE = 141  # 128 and the number of the signal SIGPIPE, as a shell says
HELP = ("-h", "--help")
OF_RUNS = ("resume", "overwrite")  # keys of commands that write the outputs of a run
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


def guarded(action: Callable[[], int | None]) -> int:
    """Run an action, and turn mistakes that users can mend into one line and an exit code.

    Args:
        action: the action. It may return an exit code of its own.

    Returns:
        The action's code, which is 0 where it returns none, 2 after a mistake that the user can mend, with a full
        disk, or where a file cannot be read or written, 130 after an interruption, and 141 where the reader of the
        output has gone.
    """
    open_streams()
    quiet()
    try:
        code = action()
        sys.stdout.flush()
        return code or 0
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
        if error.filename is not None:  # without a file it is no fault of a folder of the user
            sys.stderr.write(f"error: {error.filename}: cannot be read or written ({error.strerror})\n")
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


def run_command(command: str, arguments: Sequence[str]) -> int:
    """Run one command of the command line.

    Args:
        command: the name of the command.
        arguments: the arguments after it.

    Returns:
        The exit code, which is 1 where a check of `learn2pd check` fails, and 0 otherwise.

    Raises:
        UserError: the user made a mistake that they can mend.
    """
    if command.startswith("config="):
        raise UserError(f"no command before {command}: did you mean learn2pd run {command}")
    if command not in COMMANDS:
        raise UserError(
            f"unknown command {command!r}{suggest(command, COMMANDS)}; expected one of {', '.join(COMMANDS)}"
        )
    given = read_arguments(command, arguments)
    if given.help:
        print_text(help_text(command, given))
        return 0
    own = own_options(command, given.own)
    if command == "export":
        export(own)
    elif command == "doctor":
        from learn2pd.cli.doctor import doctor

        with loading_libraries():
            doctor(given.config or DOCTORS_CONFIG, given.overrides)
    elif command == "zoo":
        from learn2pd.cli.zoo import zoo

        print_text(zoo(own.owner))
    else:
        return run_configured(command, given, own)
    return 0


def run_configured(command: str, given: Arguments, own: Any) -> int:
    """Run a command that reads a configuration.

    Args:
        command: the name of the command.
        given: its arguments.
        own: the command's own options, None where it has none.

    Returns:
        The exit code.

    Raises:
        UserError: the user made a mistake that they can mend.
    """
    from learn2pd.cli.config import load_config

    config = load_config(given.config, given.overrides)
    if config.quiet:
        log.setLevel(logging.WARNING)
    check_launcher()
    with loading_libraries():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        from learn2pd.cli import stages
        from learn2pd.cli.stages.components import with_blocks

    if config.job == "embedded":
        if command != "run" or given.dry_run:
            raise UserError(
                f"config={given.config} trains an embedded model: start it with python train.py config={given.config}"
            )
        from learn2pd.cli.stages.pretraining import run_pretraining

        run_pretraining(config)
        return 0
    if own is not None and own.model is not None:
        if own.model != config.model.path and any(text.startswith("model.path=") for text in given.overrides):
            raise UserError(f"model={own.model} and model.path={config.model.path} are two models: give one of them")
        config.model = replace(config.model, path=own.model)
    config = with_blocks(config)
    if given.dry_run:
        named = config.stages if command == "run" else [command]
        stages.check_folder(config, named)
        print_text(stages.dry_run(config, named))
    elif command == "report":
        print_text(str(stages.write_report(Path(config.output_dir))))
    elif own is not None:
        return run_with_method(command, config, own, given.has_run)
    else:
        stages.run_stages(config, None if command == "run" else command)
    return 0


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Pause the garbage collector: what torch and transformers make while they load stays, and looking it through takes
    a fifth of the seconds that they need.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run_with_method(command: str, config: Any, own: Any, has_run: bool) -> int:
    """Run a command that decodes with one method.

    Args:
        command: the name of the command.
        config: the configuration.
        own: the command's own options.
        has_run: the configuration was named, so its output_dir may hold a trained policy.

    Returns:
        The exit code.
    """
    if command == "eval":
        from learn2pd.cli.evaluate import evaluate

        print_text(evaluate(config, own, has_run))
    elif command == "check":
        from learn2pd.cli.check import check

        return check(config, own, has_run, print_text)
    elif command == "serve":
        from learn2pd.cli.serve import serve

        serve(config, own, has_run)
    else:
        decode_one(config, own, has_run)
    return 0


@dataclass(frozen=True)
class Arguments:
    """The arguments of a command, sorted out."""

    config: str | None  # NAME of config=NAME
    overrides: list[str]  # key=value of the configuration
    own: list[str]  # key=value of the command's own options
    dry_run: bool
    help: bool

    @property
    def has_run(self) -> bool:
        """Whether the arguments name a run, in whose output_dir a trained policy may lie."""
        return self.config is not None or any(text.startswith("output_dir=") for text in self.overrides)


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
    own_keys = [entry.name for entry in fields(OWN[command])] if command in OWN else []
    names: list[str] = []
    overrides: list[str] = []
    own: list[str] = []
    prompts: list[str] = []
    for argument in (argument for argument in arguments if argument not in (DRY_RUN, QUIET, *HELP)):
        key, equals, value = argument.partition("=")
        if equals and key == "config" and COMMANDS[command].configured:
            names.append(value)
        elif equals and is_own(command, key):
            own.append(argument)
        elif equals and is_key(key):
            if key.partition(".")[0] not in configured and (near := suggest(key, own_keys)):
                raise UserError(f"{key}: unknown key{near}")
            if not COMMANDS[command].configured:
                raise UserError(f"{key}: unknown key; learn2pd {command} takes {', '.join(own_keys)}")
            if key in OF_RUNS and command in OWN:
                raise UserError(f"{key}: unknown key; learn2pd {command} continues and deletes no run")
            if command == "decode":
                check_is_key(key, argument)
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


def check_is_key(key: str, argument: str) -> None:
    """Refuse an argument of `decode` whose key does not exist, and say how a prompt that looks like it is given.

    Args:
        key: the text before the equals sign.
        argument: the whole argument.

    Raises:
        UserError: there is no such key.
    """
    from learn2pd.cli.config import RunConfig
    from learn2pd.cli.values import kind_of

    try:
        kind_of(key, RunConfig)
    except UserError as error:
        raise UserError(f"{error}; if this is the prompt, write prompt={argument!r}") from error


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
    from learn2pd.cli.config import config_names

    if argument.removesuffix(".yaml").removesuffix(".yml") in config_names():
        return f"argument {argument!r}: arguments are written key=value; did you mean config={argument}"
    meant = f"{key.lstrip('-').replace('-', '_')}={value or 'VALUE'}"
    return f"argument {argument!r}: arguments are written key=value, for example {meant}"


def help_text(command: str, given: Arguments) -> str:
    """Return the help of a command, with the values of the configuration that the arguments name, if any."""
    from learn2pd.cli.config import load_config

    described = f"config={given.config}" if given.config else "their defaults"
    return help_of(command, OWN.get(command), load_config(given.config, given.overrides), described)


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


def export(own: ExportOptions) -> None:
    """Export a trained policy for an engine, and print how the result is used.

    Args:
        own: the options of `export`.

    Raises:
        UserError: an option is missing or wrong, or the engine cannot run the policy.
    """
    if own.to is None or own.policy is None or own.output_dir is None:
        missing = next(name for name in ("to", "policy", "output_dir") if getattr(own, name) is None)
        raise UserError(f"{missing} is not given: learn2pd export to=ENGINE policy=FOLDER output_dir=FOLDER")
    from learn2pd.exporters.export import export_policy

    print_text(export_policy(own.to, own.policy, own.output_dir, **own.options))


def decode_one(config: Any, own: DecodeOptions, has_run: bool) -> None:
    """Decode one prompt and print the answer; its figures are logged to standard error.

    Args:
        config: the configuration.
        own: the options of `decode`.
        has_run: the configuration was named, so its output_dir may hold a trained policy.

    Raises:
        UserError: the prompt is empty, or the method cannot be built.
    """
    from learn2pd.cli.live import LiveCanvas
    from learn2pd.cli.methods import chosen_method
    from learn2pd.cli.stages.components import given_of, model_of, sampling_of
    from learn2pd.decoding import decode

    if not own.prompt.strip():
        raise UserError('prompt is empty: give learn2pd decode "some text"')
    model = model_of(config)
    method = chosen_method(config, own, model, has_run)
    with LiveCanvas(model, shown=own.live) as canvas:
        result = decode(
            model,
            [own.prompt],
            method,
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
