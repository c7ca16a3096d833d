"""What trainings have in common: the trainer's surroundings, and Muon for a transformer's matrices."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn

from learn2pd.training.canvases import CanvasBatch, CanvasData
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO

# Muon grows every singular value at the same rate. Without a norm on queries and keys (LLaDA has none) attention saturates within a few
# hundred steps and never learns to copy from the prompt; decay bounds their spectral norm at about 1 / decay.
QUERY_KEY_DECAY = 0.7


def fit(trainer: lightning.Trainer, module: lightning.LightningModule, data: lightning.LightningDataModule, last: Path) -> None:
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
    found: list[Logger] = [CSVLogger(folder, name="logs")]
    with contextlib.suppress(ModuleNotFoundError):
        found.append(TensorBoardLogger(folder, name="tensorboard"))
    return found


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a language model is trained: warm-up, plateau, linear decay to zero over the last `decay_share` of the steps."""

    total_steps: int
    warmup_steps: int
    decay_share: float
    muon_lr: float  # plateau, of the matrices of the blocks
    adam_lr: float  # plateau, of embeddings, head and norms
    weight_decay: float  # of the matrices of the blocks
    precision: str
    checkpoint_every_steps: int
    validate_every_steps: int

    def rate(self, step: int) -> float:
        """Learning rate as a share of its plateau."""
        decay_steps = max(self.decay_share * self.total_steps, 1)
        return max(min((step + 1) / self.warmup_steps, 1.0, (self.total_steps - step) / decay_steps), 0.0)


class LanguageTraining(lightning.LightningModule):
    """Muon for the matrices of the blocks, AdamW for everything else. A subclass says what the loss is.

    Args:
        model: trained in place.
        blocks: the part of the model whose matrices Muon trains; its `q_proj` and `k_proj` decay more.
    """

    def __init__(self, model: nn.Module, blocks: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.schedule = model, schedule
        self.matrices = {name: parameter for name, parameter in blocks.named_parameters() if parameter.ndim == 2}
        self.automatic_optimization = False  # two optimizers that both step on every batch

    def loss(self, batch: CanvasBatch) -> tuple[Tensor, Tensor]:
        """The loss, and the share of predicted tokens that are right."""
        raise NotImplementedError

    def training_step(self, batch: CanvasBatch, _: int) -> None:
        loss, accuracy = self.loss(batch)
        muon, adam = self.optimizers()
        for optimizer, base in ((muon, self.schedule.muon_lr), (adam, self.schedule.adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = base * self.schedule.rate(self.global_step)
            optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_([parameter for group in adam.param_groups for parameter in group["params"]], 1.0)
        muon.step()
        adam.optimizer.step()  # past Lightning's wrapper, which would count a second step
        self.log_dict({"train_loss": loss, "train_token_accuracy": accuracy}, prog_bar=True)

    def validation_step(self, batch: CanvasBatch, _: int) -> None:
        loss, accuracy = self.loss(batch)
        self.log_dict({"val_loss": loss, "val_token_accuracy": accuracy}, batch_size=len(batch.tokens), prog_bar=True)

    def configure_optimizers(self) -> Any:
        sharp = {id(parameter) for name, parameter in self.matrices.items() if "q_proj" in name or "k_proj" in name}
        inside = {id(parameter) for parameter in self.matrices.values()}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in inside]
        groups = [
            {"params": _chosen(self.matrices.values(), inside - sharp), "weight_decay": self.schedule.weight_decay},
            {"params": _chosen(self.matrices.values(), sharp), "weight_decay": QUERY_KEY_DECAY},
        ]
        muon = torch.optim.Muon(groups, lr=self.schedule.muon_lr)
        return [muon, torch.optim.AdamW(others, lr=self.schedule.adam_lr, weight_decay=0.0, betas=(0.9, 0.98))]


def _chosen(parameters: Any, wanted: set[int]) -> Sequence[nn.Parameter]:
    return [parameter for parameter in parameters if id(parameter) in wanted]


def train_language_model(module: LanguageTraining, data: CanvasData, folder: Path) -> dict[str, float]:
    """Train, going on from the last checkpoint in `folder`.

    Returns:
        The last validation figures.
    """
    schedule = module.schedule
    saver = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=schedule.checkpoint_every_steps, enable_version_counter=False)
    saver.FILE_EXTENSION = ".safetensors"
    trainer = lightning.Trainer(
        max_steps=schedule.total_steps,
        precision=schedule.precision,
        logger=loggers(folder),
        callbacks=[saver, TQDMProgressBar()],
        plugins=[SafetensorsCheckpointIO()],
        val_check_interval=schedule.validate_every_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=40,
        enable_model_summary=False,
    )
    fit(trainer, module, data, folder / "last.safetensors")
    figures = trainer.validate(module, data, verbose=False)[0]
    return {name: float(value) for name, value in figures.items()} | {"steps": float(schedule.total_steps)}
