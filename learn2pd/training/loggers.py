"""The loggers of a training, by name: where Lightning writes the losses and figures of every epoch.

Every round of a training is a run of its own, which the logger names. A logger of the user's own has the name
`package.module:Class` and is called with `save_dir`, the folder of the round, and `name`, the name of the run.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from learn2pd.errors import UserError, suggest
from learn2pd.registry import import_logger

KEY = "train.loggers"
PROJECT = "learn2pd"  # the project of all runs at Weights & Biases
SENDS_NOTHING = ("offline", "disabled", "dryrun")  # values of WANDB_MODE


@dataclass(frozen=True)
class KnownLogger:
    """A logger of Lightning that has a name here.

    Attributes:
        make: Builds it from the folder and the name of the run.
        packages: One of these must be installed; none is needed where there are none.
    """

    make: Callable[[Path, str], Logger]
    packages: tuple[str, ...] = ()


KNOWN = {
    "csv": KnownLogger(lambda folder, run: CSVLogger(folder, name="logs")),
    "tensorboard": KnownLogger(
        lambda folder, run: TensorBoardLogger(folder, name="tensorboard"), ("tensorboard", "tensorboardX")
    ),
    "wandb": KnownLogger(lambda folder, run: WandbLogger(name=run, save_dir=folder, project=PROJECT), ("wandb",)),
}


def check_loggers(names: Sequence[str]) -> None:
    """Check, before anything is recorded, that all loggers can be built.

    Args:
        names: names of `KNOWN`, or `package.module:Class`.

    Raises:
        UserError: a name is unknown or given twice, its package is missing, a class is no logger, or Weights & Biases
            has no key although it is to send something.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{KEY} names {name!r} twice: name every logger once")
        if ":" in name:
            _own_class(name)
        elif name not in KNOWN:
            raise UserError(
                f"{KEY}: unknown logger {name!r}{suggest(name, KNOWN)}; "
                f"expected some of {', '.join(KNOWN)}, or package.module:Class"
            )
        elif KNOWN[name].packages and not any(map(importlib.util.find_spec, KNOWN[name].packages)):
            raise UserError(
                f'{KEY}: {name!r} needs a package that is not installed: pip install "learn2pd[{name}]", '
                f"or leave {name!r} out"
            )
    if "wandb" in names and os.environ.get("WANDB_MODE") not in SENDS_NOTHING:
        import wandb

        if not wandb.login(prompt=False):
            raise UserError(
                f"{KEY}: 'wandb' has no key on this machine: run wandb login, or set WANDB_MODE=offline to send nothing"
            )


def build_loggers(names: Sequence[str], folder: Path, run: str) -> list[Logger]:
    """Build the loggers of one round.

    Args:
        names: names for which `check_loggers` passed.
        folder: the folder of the round.
        run: the name of the run, which says the round.
    """
    return [
        _own_class(name)(save_dir=str(folder), name=run) if ":" in name else KNOWN[name].make(folder, run)
        for name in names
    ]


def close_loggers(loggers: Sequence[Logger]) -> None:
    """Close the loggers of a round, so that those of the next round begin a run of their own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _own_class(name: str) -> Callable[..., Logger]:
    """Return the user's own class of a logger."""
    logger_class = import_logger(name)
    if not (inspect.isclass(logger_class) and issubclass(logger_class, Logger)):
        raise UserError(f"{KEY}={name!r}: it is no logger; derive it from lightning.pytorch.loggers.Logger")
    try:
        inspect.signature(logger_class).bind(save_dir="", name="")
    except TypeError as error:
        raise UserError(f"{KEY}={name!r}: it is called with save_dir and name, and refuses them ({error})") from error
    return logger_class
