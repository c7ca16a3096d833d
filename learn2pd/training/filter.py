"""Train the Learn2PD filter on a recording.

Each row is a block at one step: confidences in, one logit a position out, label = the proposal equals the final output. By default the
loss counts masked positions. `loss_on=answer` leaves out the padding, which is most of a canvas: the filter is then better at answers, and
slow without a stop rule, since it accepts no padding; the paper's `loss_on=all` also rewards it for recognising positions that are already
decided. Splits are by prompt and come with the recording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from datasets import Dataset
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryCalibrationError,
    BinaryPrecision,
    BinaryRecall,
    BinarySpecificity,
)

from learn2pd.errors import UserError
from learn2pd.policies.filter import FilterNetwork
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.running import fit, loggers


class FilterRows(NamedTuple):
    confidence: Tensor  # [N, W] float32
    label: Tensor  # [N, W] float32, 1 where the proposal is final
    valid: Tensor  # [N, W] bool, inside the block
    masked: Tensor  # [N, W] bool, still to decode
    answer: Tensor  # [N, W] bool, still to decode and part of the reference answer, its end-of-text included


def counted(rows: FilterRows, loss_on: str) -> Tensor:
    """[N, W] bool: the positions a loss is taken on: `masked`; `answer`, the masked ones without the padding; `all`, as in the paper."""
    return {"answer": rows.answer, "masked": rows.masked, "all": rows.valid}[loss_on]


def filter_rows(rows: Dataset, references: Dataset, split: str) -> FilterRows:
    """The columns a filter trains on.

    Raises:
        UserError: the recording has no rows of that split, or labels of one class only.
    """
    columns = ["split", "prompt_id", "position", "confidence", "label", "masked", "valid"]
    chosen = rows.with_format("numpy", columns=columns)[:]
    mine = np.asarray(chosen["split"]) == split
    if not mine.any():
        raise UserError(f"the recording has no rows of the split {split!r}: record more prompts (data.{split}_prompts)")
    confidence, label, masked, valid, position = (
        torch.from_numpy(np.stack(chosen[name])[mine]) for name in ("confidence", "label", "masked", "valid", "position")
    )
    ends = dict(zip(references["prompt_id"], references["length"], strict=True))
    end = torch.tensor([ends[name] for name in np.asarray(chosen["prompt_id"])[mine]])
    found = FilterRows(confidence.float(), label.float(), valid.bool(), masked.bool(), masked.bool() & (position <= end[:, None]))
    targets = found.label[found.answer].bool()
    if bool(targets.all()) or not bool(targets.any()):
        share = "right" if bool(targets.all()) else "wrong"
        raise UserError(f"every proposal of the split {split!r} is {share}: there is nothing to learn; record other or more prompts")
    return found


def filter_metrics(threshold: float | None = None) -> MetricCollection:
    """Metrics over masked positions of the answer, positive = the proposal is final.

    `false_commit_rate` is the share of wrong proposals that would be committed. Without a threshold only those that need none.
    """
    free = {"auroc": BinaryAUROC(), "average_precision": BinaryAveragePrecision(), "calibration_error": BinaryCalibrationError(n_bins=15)}
    if threshold is None:
        return MetricCollection(free)
    fixed = {"precision": BinaryPrecision(threshold), "recall": BinaryRecall(threshold), "specificity": BinarySpecificity(threshold)}
    return MetricCollection(free | fixed)


class FilterTraining(lightning.LightningModule):
    """Args: network; learning_rate and weight_decay of AdamW; loss_on, see `counted`."""

    def __init__(self, network: FilterNetwork, learning_rate: float, weight_decay: float, loss_on: str) -> None:
        super().__init__()
        self.network = network
        self.learning_rate, self.weight_decay, self.loss_on = learning_rate, weight_decay, loss_on
        self.metrics = filter_metrics()

    def loss(self, batch: FilterRows, logits: Tensor, loss_on: str) -> Tensor:
        chosen = counted(batch, loss_on)
        return functional.binary_cross_entropy_with_logits(logits[chosen], batch.label[chosen])

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        rows = FilterRows(*batch)
        loss = self.loss(rows, self.network(rows.confidence), self.loss_on)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(rows.label))
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        rows = FilterRows(*batch)
        logits = self.network(rows.confidence)
        # never on committed positions, so that `masked` and `all` can be compared
        judged = "answer" if self.loss_on == "answer" else "masked"
        self.log("val_loss", self.loss(rows, logits, judged), batch_size=len(rows.label), prog_bar=True)
        self.metrics.update(logits[rows.answer].sigmoid(), rows.label[rows.answer].long())

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val_{name}": value for name, value in self.metrics.compute().items()}, prog_bar=True)
        self.metrics.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)


class FilterData(lightning.LightningDataModule):
    """Args: train and validation rows; batch_rows; seed of the shuffling."""

    def __init__(self, train: FilterRows, validation: FilterRows, batch_rows: int, seed: int) -> None:
        super().__init__()
        self.train, self.validation, self.batch_rows, self.seed = train, validation, batch_rows, seed

    def train_dataloader(self) -> DataLoader[Any]:
        # seeded by the step at which the epoch starts, so that a resumed run shuffles as the uninterrupted one
        step = self.trainer.global_step if self.trainer else 0
        order = torch.randperm(len(self.train.label), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + step))
        return DataLoader(TensorDataset(*self.train), batch_size=self.batch_rows, sampler=order.tolist())

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(*self.validation), batch_size=4096)


def train_filter(
    network: FilterNetwork,
    data: FilterData,
    folder: Path,
    *,
    learning_rate: float,
    weight_decay: float,
    loss_on: str,
    max_epochs: int,
    patience_epochs: int,
) -> dict[str, float]:
    """Train in place, keep the weights of the best epoch (validation loss on masked positions); goes on from `folder` if interrupted.

    Returns:
        The best epoch's validation figures.
    """
    module = FilterTraining(network, learning_rate, weight_decay, loss_on)
    best = ModelCheckpoint(folder, filename="best", monitor="val_loss", enable_version_counter=False)
    latest = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    best.FILE_EXTENSION = latest.FILE_EXTENSION = ".safetensors"
    io = SafetensorsCheckpointIO()
    trainer = lightning.Trainer(
        accelerator="cpu",  # 2,112 parameters: a GPU would only add latency
        max_epochs=max_epochs,
        callbacks=[best, latest, EarlyStopping("val_loss", patience=patience_epochs), TQDMProgressBar()],
        logger=loggers(folder),
        plugins=[io],
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    last = folder / "last.safetensors"
    fit(trainer, module, data, last)
    module.load_state_dict(io.load_checkpoint(folder / "best.safetensors")["state_dict"])
    figures = trainer.validate(module, data, verbose=False)[0]
    return {name: float(value) for name, value in figures.items()} | {"epochs": float(trainer.current_epoch)}
