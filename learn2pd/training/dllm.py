"""Train the embedded dLLM: LLaDA's masked-diffusion objective on the built-in tasks.

Objective (arXiv 2502.09992, equation 3): a mask ratio t ~ U(0, 1) per sample, every answer token masked with probability t, cross
entropy of the masked ones weighted by 1/t. The prompt is never masked; the canvas after the answer is filled with end-of-text, so the
model learns to stop. t is stratified over the batch, which keeps its distribution and lowers the variance.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from learn2pd.evaluation.tasks import Problem, Task, problems
from learn2pd.models.llada import LLaDAConfig, LLaDAModelLM
from learn2pd.models.tiny_tokenizer import train_tokenizer
from learn2pd.training.checkpoint_io import SafetensorsCheckpointIO
from learn2pd.training.filter import fit, loggers

SMALLEST_RATIO = 1e-3  # LLaDA's epsilon: bounds the weight 1/t
PROBLEMS_PER_ROUND, BATCHES_PER_ROUND = 640, 8
LARGEST_SHORT_PADDING = 24
# Muon grows every singular value at the same rate. Without a norm on queries and keys (LLaDA has none) attention saturates within a few
# hundred steps and never learns to copy from the prompt; decay bounds their spectral norm at about 1 / decay.
QUERY_KEY_DECAY = 0.7


class CanvasBatch(NamedTuple):  # a tuple, because Lightning moves tuples between devices and not frozen dataclasses
    tokens: Tensor  # [B, T] long: prompt, answer, end-of-text to the end
    prompt_mask: Tensor  # [B, T] bool, True on prompt positions
    seed: int  # decides the masking


class CanvasStream(IterableDataset[CanvasBatch]):
    """Endless batches; batch number n depends on (seed, n) alone, so training goes on exactly where it stopped.

    Problems are drawn a round at a time, sorted by length and cut into batches of about equal numbers of tokens.

    Args:
        tasks: drawn from in equal shares.
        tokenizer: with a chat template.
        length: longest sequence, prompt and canvas, in tokens; longer problems are skipped.
        long_share: share of problems padded to the full `length`; the others get a short tail of end-of-text.
        prefix_share: share of problems whose answer is given up to a random place, as if it belonged to the prompt: what a decoder that
            works block by block meets.
        start: number of the first batch.
    """

    def __init__(
        self,
        tasks: list[Task],
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        long_share: float,
        prefix_share: float,
        seed: int,
        split: str = "train",
        start: int = 0,
    ) -> None:
        self.tasks, self.tokenizer, self.length, self.long_share, self.prefix_share = tasks, tokenizer, length, long_share, prefix_share
        self.seed, self.split, self.start = seed, split, start

    def __iter__(self) -> Iterator[CanvasBatch]:
        for number in itertools.count(self.start // BATCHES_PER_ROUND):
            first = self.start % BATCHES_PER_ROUND if number == self.start // BATCHES_PER_ROUND else 0
            yield from self.round(number)[first:]

    def round(self, number: int) -> list[CanvasBatch]:
        """The batches of one round, in random order."""
        rng = random.Random(f"{self.seed}/{number}")
        drawn = []
        for task in self.tasks:
            stream = problems(task, self.split, rng.getrandbits(48))
            drawn += [self._encode(problem, rng) for problem in itertools.islice(stream, PROBLEMS_PER_ROUND // len(self.tasks))]
        rows = sorted((row for row in drawn if row is not None), key=lambda row: row[2])
        total = sum(row[2] for row in rows)
        groups: list[list[Any]] = [[] for _ in range(BATCHES_PER_ROUND)]
        passed = 0
        for row in rows:
            groups[passed * BATCHES_PER_ROUND // total].append(row)
            passed += row[2]
        rng.shuffle(groups)
        return [self._collate(group, rng.getrandbits(48)) for group in groups if group]

    def _encode(self, problem: Problem, rng: random.Random) -> tuple[list[int], list[int], int] | None:
        prompt = chat_ids(self.tokenizer, problem.prompt)
        answer = self.tokenizer.encode(problem.answer, add_special_tokens=False)
        short = len(prompt) + len(answer) + 1 + rng.randint(0, LARGEST_SHORT_PADDING)
        wanted = self.length if rng.random() < self.long_share else min(short, self.length)
        given = rng.randint(0, len(answer)) if rng.random() < self.prefix_share else 0
        prompt, answer = prompt + answer[:given], answer[given:]
        return (prompt, answer, wanted) if len(prompt) + len(answer) < self.length else None

    def _collate(self, rows: list[Any], seed: int) -> CanvasBatch:
        length = max(wanted for _, _, wanted in rows)
        tokens = torch.full((len(rows), length), int(self.tokenizer.eos_token_id))
        prompt_mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, (prompt, answer, _) in enumerate(rows):
            tokens[index, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            prompt_mask[index, : len(prompt)] = True
        return CanvasBatch(tokens, prompt_mask, seed)


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Token ids of a user's turn and the opening of the answer, by the tokenizer's chat template."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))


def mask_canvas(batch: CanvasBatch, mask_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise a batch.

    Returns:
        inputs [B, T] with masks, masked [B, T] bool, weight [B, 1] = 1/t.
    """
    rows, length = batch.tokens.shape
    generator = torch.Generator().manual_seed(batch.seed)
    ratio = (torch.rand((), generator=generator) + torch.randperm(rows, generator=generator) / rows) % 1.0
    ratio = ((1 - SMALLEST_RATIO) * ratio + SMALLEST_RATIO)[:, None]
    masked = (torch.rand(rows, length, generator=generator) < ratio).to(batch.tokens.device) & ~batch.prompt_mask
    return torch.where(masked, mask_id, batch.tokens), masked, (1 / ratio).to(batch.tokens.device)


class DiffusionTraining(lightning.LightningModule):
    """Muon for the matrices of the blocks, AdamW for embeddings, head and norms; warm-up, plateau, linear decay.

    Args:
        model: trained in place.
        muon_lr, adam_lr: plateau learning rates.
        warmup_steps, total_steps, decay_share: the schedule; the last `decay_share` of the steps decay to zero.
    """

    def __init__(
        self, model: LLaDAModelLM, muon_lr: float, adam_lr: float, weight_decay: float, warmup_steps: int, total_steps: int, decay_share: float
    ) -> None:
        super().__init__()
        self.model = model
        self.muon_lr, self.adam_lr, self.weight_decay = muon_lr, adam_lr, weight_decay
        self.warmup_steps, self.total_steps, self.decay_share = warmup_steps, total_steps, decay_share
        self.automatic_optimization = False  # two optimizers that both step on every batch

    def loss(self, batch: CanvasBatch) -> tuple[Tensor, Tensor]:
        """Mean weighted cross entropy per canvas token, and the share of masked tokens predicted right."""
        inputs, masked, weight = mask_canvas(batch, self.model.config.mask_token_id)
        logits = self.model.score(self.model.hidden(inputs)[masked]).float()  # [masked, V]
        targets = batch.tokens[masked]
        entropy = functional.cross_entropy(logits, targets, reduction="none")
        loss = (entropy * weight.expand_as(masked)[masked]).sum() / (~batch.prompt_mask).sum()
        return loss, (logits.argmax(-1) == targets).float().mean()

    def training_step(self, batch: CanvasBatch, _: int) -> None:
        loss, accuracy = self.loss(batch)
        muon, adam = self.optimizers()
        for optimizer, base in ((muon, self.muon_lr), (adam, self.adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = base * self.rate(self.global_step)
            optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_([parameter for group in adam.param_groups for parameter in group["params"]], 1.0)
        muon.step()
        adam.optimizer.step()  # past Lightning's wrapper, which would count a second step
        self.log_dict({"train_loss": loss, "train_token_accuracy": accuracy}, prog_bar=True)

    def rate(self, step: int) -> float:
        """Learning rate as a share of its plateau."""
        decay_steps = max(self.decay_share * self.total_steps, 1)
        return max(min((step + 1) / self.warmup_steps, 1.0, (self.total_steps - step) / decay_steps), 0.0)

    def validation_step(self, batch: CanvasBatch, _: int) -> None:
        loss, accuracy = self.loss(batch)
        self.log_dict({"val_loss": loss, "val_token_accuracy": accuracy}, batch_size=len(batch.tokens), prog_bar=True)

    def configure_optimizers(self) -> Any:
        matrices = {name: parameter for name, parameter in self.model.model.transformer.blocks.named_parameters() if parameter.ndim == 2}
        sharp = [parameter for name, parameter in matrices.items() if "q_proj" in name or "k_proj" in name]
        inside, chosen = {id(parameter) for parameter in matrices.values()}, {id(parameter) for parameter in sharp}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in inside]
        groups = [
            {"params": [parameter for parameter in matrices.values() if id(parameter) not in chosen], "weight_decay": self.weight_decay},
            {"params": sharp, "weight_decay": QUERY_KEY_DECAY},
        ]
        muon = torch.optim.Muon(groups, lr=self.muon_lr)
        return [muon, torch.optim.AdamW(others, lr=self.adam_lr, weight_decay=0.0, betas=(0.9, 0.98))]


class CanvasData(lightning.LightningDataModule):
    """Training stream that starts at the trainer's step, and fixed validation batches."""

    def __init__(
        self,
        tasks: list[Task],
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        long_share: float,
        prefix_share: float,
        seed: int,
        validation_rounds: int = 1,
    ) -> None:
        super().__init__()
        self.build = lambda **options: CanvasStream(tasks, tokenizer, length, long_share, prefix_share, seed, **options)
        self.validation_rounds = validation_rounds

    def train_dataloader(self) -> DataLoader[CanvasBatch]:
        return DataLoader(self.build(start=self.trainer.global_step if self.trainer else 0), batch_size=None)

    def val_dataloader(self) -> DataLoader[CanvasBatch]:
        stream = self.build(split="validation")
        batches = [batch for number in range(self.validation_rounds) for batch in stream.round(number)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def pretrain(
    tasks: list[Task],
    folder: Path,
    *,
    seed: int,
    d_model: int,
    n_layers: int,
    n_heads: int,
    mlp_hidden_size: int,
    vocab_size: int,
    max_sequence_length: int,
    rope_theta: float,
    train_length: int,
    long_share: float,
    prefix_share: float,
    total_steps: int,
    warmup_steps: int,
    decay_share: float,
    muon_lr: float,
    adam_lr: float,
    weight_decay: float,
    precision: str,
    checkpoint_every_steps: int,
    validate_every_steps: int,
    export_path: str,
    init_from: str | None,
) -> dict[str, float]:
    """Train, going on from the last checkpoint in `folder`, and export to `export_path` in the hub's layout.

    Returns:
        The last validation figures.
    """
    tokenizer = kept_tokenizer(folder / "tokenizer") or kept_tokenizer(Path(init_from) if init_from else None)
    tokenizer = tokenizer or train_tokenizer(corpus(tasks, seed), vocab_size, max_sequence_length)
    save_tokenizer(tokenizer, folder / "tokenizer")
    config = LLaDAConfig(
        d_model=d_model,
        n_layers=n_layers,
        n_heads=n_heads,
        mlp_hidden_size=mlp_hidden_size,
        vocab_size=vocab_size,
        max_sequence_length=max_sequence_length,
        rope_theta=rope_theta,
        mask_token_id=int(tokenizer.mask_token_id),
        eos_token_id=int(tokenizer.eos_token_id),
        architectures=["LLaDAModelLM"],
    )
    model = LLaDAModelLM.from_pretrained(init_from, config=config) if init_from else LLaDAModelLM(config)
    module = DiffusionTraining(model, muon_lr, adam_lr, weight_decay, warmup_steps, total_steps, decay_share)
    data = CanvasData(tasks, tokenizer, train_length, long_share, prefix_share, seed)
    saver = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=checkpoint_every_steps, enable_version_counter=False)
    saver.FILE_EXTENSION = ".safetensors"
    trainer = lightning.Trainer(
        max_steps=total_steps,
        precision=precision,
        logger=loggers(folder),
        callbacks=[saver, TQDMProgressBar()],
        plugins=[SafetensorsCheckpointIO()],
        val_check_interval=validate_every_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=40,
        enable_model_summary=False,
    )
    fit(trainer, module, data, folder / "last.safetensors")
    figures = trainer.validate(module, data, verbose=False)[0]
    export_dllm(module.model, tokenizer, Path(export_path))
    return {name: float(value) for name, value in figures.items()} | {"steps": float(total_steps)}


def corpus(tasks: list[Task], seed: int, problems_per_task: int = 6000) -> Iterator[str]:
    """Texts the tokenizer is learnt from: training problems only."""
    for task in tasks:
        for problem in itertools.islice(problems(task, "train", seed + 1), problems_per_task):
            yield problem.prompt
            yield problem.answer


def export_dllm(model: LLaDAModelLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """config.json, model.safetensors, tokenizer.json and tokenizer_config.json (chat template inside), as on the hub."""
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def kept_tokenizer(folder: Path | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer a run began with: its ids are what the checkpoint's embeddings mean."""
    return AutoTokenizer.from_pretrained(str(folder)) if folder and folder.is_dir() else None


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json with the chat template inside, readable by every transformers version."""
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    described = json.loads(path.read_text())
    described["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name every transformers version knows
    described.pop("backend", None)
    path.write_text(json.dumps(described, indent=2) + "\n")
