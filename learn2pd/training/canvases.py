"""What the embedded models are trained on: problems of the built-in tasks as padded canvases, in an endless stream that can be resumed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerBase

from learn2pd.errors import UserError
from learn2pd.evaluation.tasks import Problem, Task, problems

PROBLEMS_PER_ROUND, BATCHES_PER_ROUND = 640, 8
LARGEST_SHORT_PADDING = 24


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
        if len(rows) < BATCHES_PER_ROUND:
            raise UserError(f"pretrain.train_length={self.length}: of {len(drawn)} problems {len(rows)} fit, too few for {BATCHES_PER_ROUND} batches")
        total = sum(row[2] for row in rows)
        groups: list[list[Any]] = [[] for _ in range(BATCHES_PER_ROUND)]
        passed = 0
        for row in rows:
            groups[passed * BATCHES_PER_ROUND // total].append(row)  # no group stays empty: a row is shorter than a batch
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


class CanvasData(lightning.LightningDataModule):
    """Training stream that starts at the trainer's step, and one round of validation batches.

    Args:
        stream: builds a `CanvasStream` from `split` and `start`.
    """

    def __init__(self, stream: Callable[..., CanvasStream]) -> None:
        super().__init__()
        self.stream = stream

    def train_dataloader(self) -> DataLoader[CanvasBatch]:
        return DataLoader(self.stream(start=self.trainer.global_step if self.trainer else 0), batch_size=None)

    def val_dataloader(self) -> DataLoader[CanvasBatch]:
        return DataLoader(self.stream(split="validation").round(0), batch_size=None)  # type: ignore[arg-type]


def corpus(tasks: list[Task], seed: int, problems_per_task: int = 6000) -> Iterator[str]:
    """Texts the tokenizer is learnt from: training problems only."""
    for task in tasks:
        for problem in itertools.islice(problems(task, "train", seed + 1), problems_per_task):
            yield problem.prompt
            yield problem.answer
