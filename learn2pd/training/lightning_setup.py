"""The parts around Lightning that every training needs: resuming, Ctrl-C and loggers."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO


class OneProcess(LightningEnvironment):
    """The surroundings of a training in this process alone.

    Lightning looks for the variables of Slurm, LSF, MPI and torchrun otherwise, and refuses a job with several tasks
    although the training needs only one.
    """

    @property
    def creates_processes_externally(self) -> bool:
        """True: Lightning starts no process."""
        return True

    def local_rank(self) -> int:
        """Return 0, the number of the only process."""
        return 0

    def node_rank(self) -> int:
        """Return 0, the number of the only node."""
        return 0


def plugins() -> list[Any]:
    """Return the plugins of every training: checkpoints without pickle, and one process."""
    return [SafetensorsCheckpointIO(), OneProcess()]


def check_checkpoint(path: Path, module: lightning.LightningModule) -> None:
    """Make sure that a training can go on from a checkpoint, or that a network can take its weights.

    Args:
        path: the file of the checkpoint.
        module: the module whose names and shapes the weights must have.

    Raises:
        UserError: the file is missing or damaged, or it is a checkpoint of something else.
    """
    checkpoint = SafetensorsCheckpointIO().load_checkpoint(path)
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    saved = (
        {name: tensor.shape for name, tensor in state.items() if isinstance(tensor, Tensor)}
        if isinstance(state, dict)
        else {}
    )
    if saved != {name: tensor.shape for name, tensor in module.state_dict().items()} or "epoch" not in checkpoint:
        raise UserError(f"checkpoint {path} is of another training: delete {path.parent} to train it again")


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
