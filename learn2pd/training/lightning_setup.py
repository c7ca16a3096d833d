"""The parts around Lightning that every training needs: resuming, Ctrl-C and the progress bar."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor
from tqdm import tqdm

from learn2pd.errors import UserError, first_line
from learn2pd.progress import progress_bar
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO

BEST = "best.safetensors"  # checkpoint of the best epoch
LAST = "last.safetensors"  # checkpoint of the last one


class Surroundings(LightningEnvironment):
    """The surroundings of a training in this process alone, or in several processes that are already connected.

    Lightning looks for the variables of Slurm, LSF, MPI and torchrun otherwise, and refuses a job with several tasks
    although the training needs only one. To Lightning, each process is a node with one device, so that nodes with
    different numbers of processes can train together.

    Args:
        rank: the number of this process.
    """

    def __init__(self, rank: int = 0) -> None:
        super().__init__()
        self.rank = rank

    @property
    def creates_processes_externally(self) -> bool:
        """True: Lightning starts no process."""
        return True

    def local_rank(self) -> int:
        """Return 0, the number of the only process of a node."""
        return 0

    def node_rank(self) -> int:
        """Return the number of this process."""
        return self.rank


def plugins(rank: int = 0) -> list[Any]:
    """Return the plugins of every training: checkpoints without pickle, and the place of this process.

    Args:
        rank: the number of this process among those that train together.
    """
    return [SafetensorsCheckpointIO(), Surroundings(rank)]


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
        UserError: another process that trains with this one is lost.
    """
    try:
        trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    except RuntimeError as error:
        if trainer.world_size > 1 and "gloo" in str(error):  # the library that connects the processes
            raise UserError(
                f"{last.parent}: another process of this training is lost ({first_line(error)}): start all of them "
                "again; the training goes on after its last whole epoch"
            ) from error
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


def fit_by_epochs(
    module: LightningModule,
    data: lightning.LightningDataModule,
    folder: Path,
    *,
    epochs: int,
    monitor: str,
    mode: Literal["min", "max"] = "min",
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    validate_every: int = 1,
    rank: int = 0,
    count: int = 1,
) -> tuple[Trainer, ModelCheckpoint]:
    """Train a small network on the CPU, from the last checkpoint in a folder if there is one.

    Args:
        module: the module that is trained.
        data: its data, which are loaded anew in every epoch.
        folder: folder for the checkpoints of the best and of the last epoch.
        epochs: the most epochs.
        monitor: the logged figure that decides which epoch is the best.
        mode: whether the best figure is the least or the largest.
        callbacks: further callbacks, such as the progress bar.
        loggers: where the figures go.
        validate_every: the number of epochs between validations.
        rank: the number of this process among those that train together.
        count: the number of processes that train together; they are connected, and all of them see the folder.

    Returns:
        The trainer, and the callback that knows the best epoch.

    Raises:
        UserError: the last checkpoint is damaged or of another training.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    best = ModelCheckpoint(folder, filename=Path(BEST).stem, monitor=monitor, mode=mode, enable_version_counter=False)
    latest = ModelCheckpoint(
        folder, filename=Path(LAST).stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    best.FILE_EXTENSION = latest.FILE_EXTENSION = Path(BEST).suffix
    trainer = Trainer(
        accelerator="cpu",  # a few thousand parameters: a GPU would only add latency
        devices=1,
        num_nodes=count,
        strategy="ddp" if count > 1 else "auto",
        max_epochs=epochs,
        check_val_every_n_epoch=validate_every,
        callbacks=[best, latest, *callbacks],
        logger=list(loggers),
        enable_progress_bar=False,
        plugins=plugins(rank),
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    last = folder / LAST
    if last.exists():
        check_checkpoint(last, module)
    fit(trainer, module, data, last)
    return trainer, best
