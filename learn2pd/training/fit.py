"""Training of predictors on recordings.

A predictor answers one yes-or-no question at each position, from the channels of a window. The rows are read from the
shards, a few shards at a time, so that a recording that is larger than memory can be trained on as well. Prompts are
assigned to splits when they are recorded. The question of a predictor (predictors/questions.py) says which positions
the loss counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryCalibrationError,
    BinaryPrecision,
    BinaryRecall,
    BinaryRecallAtFixedPrecision,
    BinarySpecificity,
)

from learn2pd.errors import UserError
from learn2pd.predictors.features import OBSERVED
from learn2pd.predictors.networks import LengthFree, PredictorNetwork
from learn2pd.predictors.questions import Batch, Columns, Question, make_batch, several_of
from learn2pd.recording.processes import Processes
from learn2pd.recording.reading import Recording
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.lightning_setup import BEST, FitProgress, check_checkpoint, fit_by_epochs
from learn2pd.training.loggers import close_loggers

SHARDS_AT_A_TIME = 8  # shards that are held in memory and whose rows are shuffled together
VALIDATION_ROWS = 4096  # states in a batch of validation


class StateStream(IterableDataset[Batch]):
    """Batches of the recorded states of one split, shuffled if a seed is given.

    Args:
        recordings: the oracle's recording, and those of rounds.
        split: `train` or `validation`.
        question: the question that the network answers, which decides the labels.
        network: the network, which decides the channels.
        batch_rows: states in each batch.
        seed: seed of the order of the shards, and of the order of the rows among `SHARDS_AT_A_TIME` shards. With None
            the recorded order is kept.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        split: str,
        question: Question,
        network: PredictorNetwork,
        batch_rows: int,
        seed: int | None,
    ) -> None:
        self.recordings = recordings
        self.split = split
        self.question = question
        self.network = network
        self.batch_rows = batch_rows
        self.seed = seed

    def states(self, more: Sequence[str] = ()) -> Iterator[Columns]:
        """Read recorded columns, `batch_rows` states at a time.

        Args:
            more: names of columns that are read in addition to those that the question needs.

        Yields:
            The columns by their names.
        """
        generator = self._generator()
        names = (*OBSERVED, *self.question.columns, *several_of(self.network), *more)
        places = [(recording, shard) for recording in self.recordings for shard in range(len(recording))]
        order = (
            list(range(len(places))) if self.seed is None else torch.randperm(len(places), generator=generator).tolist()
        )
        for first in range(0, len(order), SHARDS_AT_A_TIME):
            parts = [
                places[place][0].columns(places[place][1], names, self.split)
                for place in order[first : first + SHARDS_AT_A_TIME]
            ]
            columns = {name: torch.cat([part[name] for part in parts]) for name in names}
            count = len(columns["masked"])
            row_order = torch.arange(count) if self.seed is None else torch.randperm(count, generator=generator)
            for rows in row_order.split(self.batch_rows) if count else ():
                yield {name: values[rows] for name, values in columns.items()}

    def __iter__(self) -> Iterator[Batch]:
        return (make_batch(columns, self.question, self.network) for columns in self.states())

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed or 0)


class PredictorData(lightning.LightningDataModule):
    """The training and validation data of a predictor, for Lightning.

    Args:
        recordings: the oracle's recording, and those of rounds.
        question: the question that the network answers, which decides the labels.
        network: the network, which decides the channels.
        batch_rows: recorded states in each optimizer step.
        seed: seed of the shuffling.
    """

    def __init__(
        self, recordings: Sequence[Recording], question: Question, network: PredictorNetwork, batch_rows: int, seed: int
    ) -> None:
        super().__init__()
        self.recordings = recordings
        self.question = question
        self.network = network
        self.batch_rows = batch_rows
        self.seed = seed

    def stream(self, split: str, batch_rows: int, seed: int | None = None) -> StateStream:
        """Return the states of a split.

        Args:
            split: `train` or `validation`.
            batch_rows: states in each batch.
            seed: seed of the shuffling; with None the recorded order is kept.
        """
        return StateStream(self.recordings, split, self.question, self.network, batch_rows, seed)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled training states."""
        # The seed depends on the step at which the epoch starts: a resumed run shuffles like an uninterrupted one.
        step = self.trainer.global_step if self.trainer else 0
        return DataLoader(self.stream("train", self.batch_rows, self.seed * 1_000_003 + step), batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation states in their recorded order."""
        return DataLoader(self.stream("validation", VALIDATION_ROWS), batch_size=None)

    def prepare(self, normalise: bool = True) -> None:
        """Read all labels one time, check them, and normalise the network's channels.

        Args:
            normalise: give the network the mean and the deviation of its channels over the training positions. A
                network that is fine-tuned keeps the values it has.

        Raises:
            UserError: a split has no states, or all of its labels are the same.
        """
        for split in ("train", "validation"):
            right = wrong = rows = 0
            sums, squares = torch.zeros(2, len(self.network.channels), dtype=torch.float64)
            seen = 0
            for batch in self.stream(split, VALIDATION_ROWS):
                rows += len(batch.label)
                right += int(batch.label[batch.judged].sum())
                wrong += int((1 - batch.label[batch.judged]).sum())
                inside = batch.inputs[batch.valid].double()
                sums = sums + inside.sum(0)
                squares = squares + inside.square().sum(0)
                seen = seen + len(inside)
            if not rows:
                raise UserError(
                    f"the recording has no rows of the split {split!r}: record more prompts (data.{split}_prompts)"
                )
            if not right or not wrong:
                advice = "lower train.keep_threshold, or " if self.question.of_committed else ""
                raise UserError(
                    f"every label of the split {split!r} is {'yes' if right else 'no'}: nothing to learn; "
                    f"{advice}record other or more prompts"
                )
            if normalise and split == "train" and isinstance(self.network, LengthFree):
                mean = sums / seen
                self.network.normalise_by(mean, (squares / seen - mean.square()).clamp_min(0).sqrt())


class RecallAtPrecision(BinaryRecallAtFixedPrecision):
    """The largest recall at which the precision is at least `min_precision`, without its threshold."""

    def compute(self) -> Tensor:
        """Return the recall."""
        recall: Tensor = super().compute()[0]
        return recall


def predictor_metrics(threshold: float | None = None) -> MetricCollection:
    """Return the metrics over judged positions.

    Args:
        threshold: probability from which on the answer is yes. With None, only the metrics that need no threshold are
            returned.

    Returns:
        The metrics. 1 - `specificity` is the share of wrong proposals that would be committed.
    """
    alone: dict[str, Any] = {"sync_on_compute": False}  # every process that trains has seen all states
    free: dict[str, Any] = {
        "auroc": BinaryAUROC(**alone),
        "average_precision": BinaryAveragePrecision(**alone),
        "calibration_error": BinaryCalibrationError(n_bins=15, **alone),
        "recall_at_99": RecallAtPrecision(min_precision=0.99, **alone),
    }
    if threshold is None:
        return MetricCollection(free)
    fixed = {
        "precision": BinaryPrecision(threshold),
        "recall": BinaryRecall(threshold),
        "specificity": BinarySpecificity(threshold),
    }
    return MetricCollection(free | fixed)


class PredictorTraining(lightning.LightningModule):
    """The training of a predictor, for Lightning.

    Args:
        network: the network, which is trained in place.
        learning_rate: learning rate of AdamW.
        weight_decay: weight decay of AdamW.

    Of several processes, each computes the loss of its share of the states of a batch. Its loss is weighted so that the
    mean over the processes, which Lightning takes of the gradients, is the gradient of the whole batch. All of them
    validate on all states, so that all of them stop at the same epoch.
    """

    def __init__(self, network: PredictorNetwork, learning_rate: float, weight_decay: float) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.metrics = predictor_metrics()

    def loss(self, batch: Batch, counted: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss of a batch.

        Args:
            batch: the batch.
            counted: [N, W] bool, the positions that the loss is averaged over.

        Returns:
            The loss, a scalar, which is 0 where no position counts; and the logits [N, W].
        """
        logits: Tensor = self.network(*batch.seen)
        if not bool(counted.any()):
            return logits.sum() * 0, logits
        return functional.binary_cross_entropy_with_logits(logits[counted], batch.label[counted]), logits

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of a training batch."""
        count = self.trainer.world_size
        loss = self.loss(batch, batch.counted)[0] if count == 1 else self._share_of_loss(batch, count)
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.label), sync_dist=count > 1)
        return loss

    def _share_of_loss(self, batch: Batch, count: int) -> Tensor:
        rank = self.trainer.global_rank
        rows = torch.arange(rank, len(batch.label), count)
        counted = batch.counted
        if not len(rows):  # fewer states than processes; every process must take part in every step
            rows, counted = torch.zeros(1, dtype=torch.long), torch.zeros_like(batch.counted)
        mine = batch.rows(rows)
        share = counted[rows].sum() / batch.counted.sum().clamp_min(1)
        return self.loss(mine, counted[rows])[0] * share * count

    def validation_step(self, batch: Batch, _: int) -> None:
        """Add a validation batch to the loss and to the metrics."""
        # Positions about which no run asks are left out, so that the losses of `masked` and `all` can be compared.
        counted = batch.counted & batch.asked
        loss, logits = self.loss(batch, counted)
        self.log("val_loss", loss, batch_size=int(counted.sum()) or 1, prog_bar=True)
        self.metrics.update(logits[batch.judged].sigmoid(), batch.label[batch.judged].long())

    def on_validation_epoch_end(self) -> None:
        """Log the metrics and reset them."""
        self.log_dict({f"val_{name}": value for name, value in self.metrics.compute().items()}, prog_bar=True)
        self.metrics.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over the parameters that are trained."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.learning_rate, weight_decay=self.weight_decay)


@dataclass(frozen=True)
class Recipe:
    """The settings of a predictor's training."""

    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    max_epochs: int = 100
    patience_epochs: int = 10  # epochs without a lower validation loss after which the training stops


def load_weights(network: PredictorNetwork, folder: Path) -> None:
    """Give a network the weights of the best epoch of its training.

    Args:
        network: the network; it is changed.
        folder: the folder of the training.

    Raises:
        UserError: the weights are missing or damaged, or they are those of another network.
    """
    module = PredictorTraining(network, 0.0, 0.0)
    check_checkpoint(folder / BEST, module)
    module.load_state_dict(SafetensorsCheckpointIO().load_checkpoint(folder / BEST)["state_dict"])
    network.eval()


def train_predictor(
    network: PredictorNetwork,
    data: PredictorData,
    folder: Path,
    recipe: Recipe,
    loggers: Sequence[Logger] = (),
    processes: Processes | None = None,
) -> dict[str, float]:
    """Train a network in place and give it the weights of the epoch with the least validation loss.

    An interrupted training continues from its last checkpoint in `folder`.

    Args:
        network: the network.
        data: the training and validation data.
        folder: folder for checkpoints.
        recipe: the settings of the training.
        loggers: where the losses and figures of every epoch go; they are closed at the end.
        processes: the connected processes that train the network together, all of which call this function; None
            trains in this process alone.

    Returns:
        The validation figures of the best epoch, and `epochs`, the number of epochs that were trained.
    """
    module = PredictorTraining(network, recipe.learning_rate, recipe.weight_decay)
    stopping = EarlyStopping("val_loss", patience=recipe.patience_epochs)
    bar = FitProgress(f"train {folder.name}", recipe.max_epochs, "epoch")
    trainer, _ = fit_by_epochs(
        module,
        data,
        folder,
        epochs=recipe.max_epochs,
        monitor="val_loss",
        callbacks=[stopping, bar],
        loggers=loggers,
        rank=processes.rank if processes else 0,
        count=processes.count if processes else 1,
    )
    if processes is not None:
        processes.wait()  # the first process has written the weights
    load_weights(network, folder)
    figures = trainer.validate(module, data, verbose=False)[0]
    close_loggers(loggers)
    return {name: float(value) for name, value in figures.items()} | {"epochs": float(trainer.current_epoch)}
