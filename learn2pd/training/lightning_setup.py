"""The parts around Lightning that every training needs: resuming, Ctrl-C and loggers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lightning
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger


def fit(
    trainer: lightning.Trainer, module: lightning.LightningModule, data: lightning.LightningDataModule, last: Path
) -> None:
    """Train, from the last checkpoint if it exists.

    Args:
        trainer: Lightning's trainer.
        module: the module that is trained.
        data: the data of the training.
        last: the file of the last checkpoint.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C. Lightning turns it into an exit of its own, which this function
            turns back.
    """
    try:
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def loggers(folder: Path) -> list[Logger]:
    """Return a CSV logger, and a TensorBoard logger where TensorBoard is installed.

    Args:
        folder: folder of the logs.
    """
    outputs: list[Logger] = [CSVLogger(folder, name="logs")]
    with contextlib.suppress(ModuleNotFoundError):
        outputs.append(TensorBoardLogger(folder, name="tensorboard"))
    return outputs
