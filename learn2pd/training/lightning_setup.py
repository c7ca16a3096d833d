"""The parts around Lightning that every training needs: resuming, Ctrl-C and the progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm import tqdm

from learn2pd.errors import UserError
from learn2pd.progress import progress_bar
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


def check_checkpoint(path: Path, module: LightningModule) -> None:
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


def fit(trainer: lightning.Trainer, module: LightningModule, data: lightning.LightningDataModule, last: Path) -> None:
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


class FitProgress(Callback):
    """The progress bar of a training.

    Args:
        what: the training, in one or two words.
        total: the most epochs or optimizer steps.
        unit: what the bar counts.
        shows: names of logged figures whose last values stand beside the bar.
    """

    def __init__(
        self, what: str, total: int, unit: Literal["epoch", "step"], shows: Sequence[str] = ("val_loss",)
    ) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.shows = shows
        self.bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar, at the place where an interrupted training goes on."""
        done = trainer.current_epoch if self.unit == "epoch" else trainer.global_step
        self.bar = progress_bar(self.total, self.what, self.unit, done=done)

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        """Count the optimizer steps."""
        if self.unit == "step" and self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the epochs, and show the last figures."""
        if self.bar is None:
            return
        logged = {
            name: f"{trainer.callback_metrics[name]:.4f}" for name in self.shows if name in trainer.callback_metrics
        }
        if logged:
            self.bar.set_postfix(logged, refresh=False)
        if self.unit == "epoch":
            self.bar.update(trainer.current_epoch + 1 - self.bar.n)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar after an interruption."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
