"""What every training has in common around Lightning: resuming, Ctrl-C, loggers."""

from __future__ import annotations

import contextlib
from pathlib import Path

import lightning
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger


def fit(
    trainer: lightning.Trainer, module: lightning.LightningModule, data: lightning.LightningDataModule, last: Path
) -> None:
    """Train, from the checkpoint `last` where there is one.

    Raises:
        KeyboardInterrupt: on Ctrl-C, which Lightning turns into an exit of its own.
    """
    try:
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


def loggers(folder: Path) -> list[Logger]:
    """CSV always, TensorBoard where it is installed."""
    outputs: list[Logger] = [CSVLogger(folder, name="logs")]
    with contextlib.suppress(ModuleNotFoundError):
        outputs.append(TensorBoardLogger(folder, name="tensorboard"))
    return outputs
