"""How the embedded models are trained.

Muon trains the matrices of the blocks and AdamW everything else. A training resumes exactly from its checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional

from learn2pd.embedded.objectives import MicroBatch
from learn2pd.embedded.stream import Batch, StreamData
from learn2pd.errors import UserError
from learn2pd.kinds import option
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.lightning_setup import FitProgress, fit, plugins

# Muon grows every singular value at the same rate. Without a norm on queries and keys (LLaDA has none) attention
# saturates within a few hundred steps and never learns to copy from the prompt. Decay bounds the spectral norm of these
# matrices at about 1 / decay.
QUERY_KEY_DECAY = 0.7


@dataclass
class Schedule:
    """How long and how fast a language model is trained.

    The learning rates rise to their plateaus, stay, and fall linearly to zero.

    Args:
        total_steps: The number of optimizer steps.
        warmup_steps: The number of steps over which the rates rise to their plateaus.
        decay_share: The share of the steps, the last ones, over which the rates fall to zero.
        muon_lr: The plateau of the matrices of the blocks.
        adam_lr: The plateau of embeddings, head and norms.
        weight_decay: The weight decay of the matrices of the blocks, those of queries and keys excepted.
        checkpoint_every_steps: The number of steps between checkpoints.
        validate_every_steps: The number of steps between validations.

    Raises:
        ValueError: A number makes no sense; the message has its name.
    """

    total_steps: int = option(8000, "optimizer steps")
    warmup_steps: int = option(100, "steps over which the learning rates rise to their plateaus")
    decay_share: float = option(0.5, "share of the steps, the last ones, over which the learning rates fall to zero")
    muon_lr: float = option(0.008, "highest learning rate of the matrices of the blocks")
    adam_lr: float = option(0.006, "highest learning rate of embeddings, head and norms")
    weight_decay: float = option(0.1, "weight decay of the matrices of the blocks, those of queries and keys excepted")
    checkpoint_every_steps: int = option(100, "steps between checkpoints")
    validate_every_steps: int = option(500, "steps between validations")

    def __post_init__(self) -> None:
        for name in ("total_steps", "warmup_steps", "checkpoint_every_steps", "validate_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule.{name}={getattr(self, name)}: expected at least 1")
        for name in ("muon_lr", "adam_lr"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"schedule.{name}={getattr(self, name)}: expected a number between 0 and 1")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"schedule.decay_share={self.decay_share}: expected a number from 0 to 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"schedule.weight_decay={self.weight_decay}: expected a number of at least 0")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0, as a share of its plateau."""
        decay_steps = max(self.decay_share * self.total_steps, 1)
        rising = (step + 1) / self.warmup_steps
        falling = (self.total_steps - step) / decay_steps
        return max(min(rising, 1.0, falling), 0.0)


class LanguageTraining(lightning.LightningModule):
    """Trains a language model: each step takes all micro-batches of a batch, and then one step of both optimizers.

    Args:
        model: The network, which is trained in place.
        blocks: The part of the network whose matrices Muon trains. Its `q_proj` and `k_proj` decay more.
        schedule: The learning rates by step.
    """

    def __init__(self, model: nn.Module, blocks: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.model: Any = model
        self.schedule = schedule
        self.matrices = {name: parameter for name, parameter in blocks.named_parameters() if parameter.ndim == 2}
        self.automatic_optimization = False  # both optimizers step on every batch
        self.seconds = 0.0  # by `clock`, spent in all processes of this training up to the last checkpoint
        self.clock: Callable[[], float] = time.process_time
        self._counted = self.clock()

    def scores(self, batch: MicroBatch) -> Tensor:
        """Return the logits [N, V] of the scored positions of a micro-batch."""
        raise NotImplementedError

    def losses(self, batch: Batch) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield, for each micro-batch, its part of the mean loss of a token and how many targets are hit."""
        tokens = sum(part.tokens for part in batch)
        for part in batch:
            logits = self.scores(part).float()
            entropy = functional.cross_entropy(logits, part.targets, reduction="none")
            yield (entropy * part.weights).sum() / tokens, (logits.argmax(-1) == part.targets).sum()

    def training_step(self, batch: Batch, _: int) -> None:
        """Train on one batch and log its figures."""
        muon, adam = self.optimizers()
        for optimizer, base in ((muon, self.schedule.muon_lr), (adam, self.schedule.adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = base * self.schedule.rate(self.global_step)
            optimizer.zero_grad()
        parts = []
        for loss, right in self.losses(batch):
            self.manual_backward(loss)
            parts.append((loss.detach(), right))
        clipped = [parameter for group in adam.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        muon.step()
        adam.optimizer.step()  # Lightning's wrapper is bypassed, because it would count a second step
        figures = _figures("train", batch, parts)
        self.log_dict(figures, prog_bar=True, logger=False)
        # The figures are logged before a checkpoint of this step is saved; Lightning itself would log them after it.
        for logger in self.loggers:
            logger.log_metrics({name: float(value) for name, value in figures.items()}, step=self.global_step - 1)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Log the figures of one validation batch."""
        figures = _figures("val", batch, list(self.losses(batch)))
        self.log_dict(figures, batch_size=sum(len(part.inputs) for part in batch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the logs out, and put the time that was spent so far into the checkpoint."""
        # A resumed training logs what comes after this checkpoint and nothing before it.
        for logger in self.loggers:
            logger.save()
        checkpoint["seconds"] = self.seconds_so_far()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the time that was spent from a checkpoint."""
        self.seconds = float(checkpoint["seconds"])

    def seconds_so_far(self) -> float:
        """Return the seconds of the clock that all processes of this training have spent."""
        now = self.clock()
        self.seconds += now - self._counted
        self._counted = now
        return self.seconds

    def configure_optimizers(self) -> Any:
        """Return Muon for the matrices of the blocks, and AdamW for all other parameters."""
        sharp = {id(parameter) for name, parameter in self.matrices.items() if "q_proj" in name or "k_proj" in name}
        inside = {id(parameter) for parameter in self.matrices.values()}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in inside]
        groups = [
            {"params": _members(self.matrices.values(), inside - sharp), "weight_decay": self.schedule.weight_decay},
            {"params": _members(self.matrices.values(), sharp), "weight_decay": QUERY_KEY_DECAY},
        ]
        muon = torch.optim.Muon(groups, lr=self.schedule.muon_lr)
        return [muon, torch.optim.AdamW(others, lr=self.schedule.adam_lr, weight_decay=0.0, betas=(0.9, 0.98))]


def _figures(split: str, batch: Batch, parts: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the figures that are logged of a batch, from what `losses` gives for its micro-batches."""
    scored = sum(len(part.targets) for part in batch)
    loss = torch.stack([loss for loss, _ in parts]).sum()
    right = torch.stack([right for _, right in parts]).sum()
    return {f"{split}_loss": loss, f"{split}_token_accuracy": right / max(scored, 1)}


def _members(parameters: Iterable[nn.Parameter], identities: set[int]) -> Sequence[nn.Parameter]:
    return [parameter for parameter in parameters if id(parameter) in identities]


class DiffusionTraining(LanguageTraining):
    """Trains a masked diffusion language model (a `DiffusionNetwork`)."""

    def scores(self, batch: MicroBatch) -> Tensor:
        """Return the logits [N, V] of the scored positions, each for its own token."""
        hidden = self.model.hidden(batch.inputs, batch.positions, batch.attention)
        return self.model.score(hidden[batch.scored])


class CausalTraining(LanguageTraining):
    """Trains an autoregressive model of the transformers kind."""

    def scores(self, batch: MicroBatch) -> Tensor:
        """Return the logits [N, V] of the scored positions, each for the token after it."""
        hidden = self.model.model(batch.inputs, position_ids=batch.positions).last_hidden_state
        return self.model.lm_head(hidden[batch.scored])


def check_checkpoint(path: Path, module: LanguageTraining) -> None:
    """Make sure that a training can go on from a checkpoint.

    Args:
        path: The file of the checkpoint.
        module: The training that is to go on.

    Raises:
        UserError: The file is damaged, or it holds a checkpoint of something else.
    """
    try:
        checkpoint = SafetensorsCheckpointIO().load_checkpoint(path)
    except (ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
    saved = {name: tensor.shape for name, tensor in checkpoint.get("state_dict", {}).items()}
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if "seconds" not in checkpoint or saved != expected:
        raise UserError(
            f"checkpoint {path} was not written by this configuration (its weights have other names or shapes): "
            "delete it to start again, or give another output_dir"
        )


def train_language_model(
    module: LanguageTraining, data: StreamData, folder: Path, device: torch.device
) -> dict[str, float]:
    """Train a language model to its last step, going on from the last checkpoint in a folder.

    Args:
        module: The training, which holds the model.
        data: The batches.
        folder: The folder of checkpoints and logs.
        device: A CPU or a GPU. On a GPU matrices are multiplied in TF32.

    Returns:
        The last validation figures, the number of steps, and the hours of one processor core, or of the GPU, that the
        training took.

    Raises:
        UserError: The last checkpoint is damaged, or another configuration wrote it.
    """
    schedule = module.schedule
    on_cpu = device.type == "cpu"
    if not on_cpu:
        torch.set_float32_matmul_precision("high")
        module.clock = time.monotonic  # the GPU's hours are those of the clock on the wall
        module._counted = module.clock()
    last = folder / "last.safetensors"
    if last.exists():
        check_checkpoint(last, module)
    saver = ModelCheckpoint(
        folder,
        save_last=True,
        save_top_k=0,
        every_n_train_steps=schedule.checkpoint_every_steps,
        enable_version_counter=False,
    )
    saver.FILE_EXTENSION = ".safetensors"
    trainer = lightning.Trainer(
        accelerator="cpu" if on_cpu else "gpu",
        devices=1 if on_cpu else [device.index or 0],
        max_steps=schedule.total_steps,
        logger=CSVLogger(folder, name="logs"),
        callbacks=[saver, FitProgress("train the model", schedule.total_steps, "step")],
        enable_progress_bar=False,
        plugins=plugins(),
        val_check_interval=schedule.validate_every_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,  # the first losses identify a training
        enable_model_summary=False,
    )
    fit(trainer, module, data, last)
    figures = trainer.validate(module, data, verbose=False)[0]
    spent = {"steps": float(schedule.total_steps)}
    spent["core_hours" if on_cpu else "gpu_hours"] = round(module.seconds_so_far() / 3600, 3)
    return {name: float(value) for name, value in figures.items()} | spent
