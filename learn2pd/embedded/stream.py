"""What the embedded models are trained on, as an endless stream of batches that can be taken up at any step.

Batch number n depends on the seed and on n alone. So a training that was interrupted meets the same batches as one that
was not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import lightning
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from learn2pd.embedded.examples import ExampleSource
from learn2pd.embedded.objectives import MicroBatch, Objective, Row
from learn2pd.errors import UserError
from learn2pd.kinds import option

LARGEST_TAIL = 24  # end-of-text tokens after the first one, behind an answer that is not padded to the full length
VALIDATION_BATCHES = 8
Batch = list[MicroBatch]


@dataclass
class Shape:
    """How examples become rows, and rows batches.

    Args:
        batch_examples: The number of examples of an optimizer step.
        length: The number of tokens of the longest row, prompt and canvas together. Longer examples are left out.
        long_share: The share of examples that are padded to `length`. The others get a short tail of end-of-text.
        prefix_share: The share of examples whose answer is given up to a random place, as if it belonged to the prompt.
            A decoder that works block by block meets such states.

    Raises:
        ValueError: A number makes no sense; the message has its name.
    """

    batch_examples: int = option(64, "examples of an optimizer step")
    length: int = option(320, "tokens of the longest row, prompt and canvas together; longer examples are left out")
    long_share: float = option(
        0.03, "share of the examples that are padded to `length`; the others get a short tail of end-of-text"
    )
    prefix_share: float = option(0.5, "share of the examples whose answer is given up to a random place")

    def __post_init__(self) -> None:
        for name in ("batch_examples", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"shape.{name}={getattr(self, name)}: expected at least 1")
        for name in ("long_share", "prefix_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"shape.{name}={getattr(self, name)}: expected a number from 0 to 1")


class BatchStream(IterableDataset[Batch]):
    """The batches number `start`, `start + 1`, and so on without an end.

    The workers of a `DataLoader` take turns.

    Args:
        source: The source of the examples.
        tokenizer: A tokenizer with a chat template.
        objective: What the network is asked for.
        shape: How examples become batches.
        seed: The seed of all random choices. Two streams of one seed are equal.
        micro_tokens: The number of tokens, padding included, that go through the network at once. What is asked of an
            example does not depend on it.
        split: The split of the examples, `train` or `validation`.
        start: The number of the first batch.
    """

    def __init__(
        self,
        source: ExampleSource,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        shape: Shape,
        seed: int,
        micro_tokens: int = 1536,
        split: str = "train",
        start: int = 0,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.objective = objective
        self.shape = shape
        self.seed = seed
        self.micro_tokens = micro_tokens
        self.split = split
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, every = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in itertools.count(self.start + first, every):
            yield self.batch(number)

    def batch(self, number: int) -> Batch:
        """Return one batch.

        Args:
            number: The number of the batch.

        Raises:
            UserError: No example is short enough.
        """
        rng = random.Random(f"{self.seed}/{self.split}/{number}")
        examples = self.source.draw(self.split, self.shape.batch_examples, rng)
        prompts = chat_ids(self.tokenizer, [example.prompt for example in examples])
        answers = self.tokenizer([example.answer for example in examples], add_special_tokens=False)["input_ids"]
        encoded = [_row(*pair, self.shape, rng) for pair in zip(prompts, answers, strict=True)]
        rows = sorted((row for row in encoded if row is not None), key=lambda row: row.length)
        if not rows:
            length = self.shape.length
            raise UserError(
                f"shape.length={length}: none of {len(examples)} examples is that short; give a larger length"
            )
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        shift = torch.rand((), generator=generator)
        quantiles = (shift + torch.randperm(len(rows), generator=generator) / len(rows)) % 1.0
        micro_batches = []
        first = 0
        for group in _groups(rows, self.micro_tokens):
            micro_batches.append(self.objective(group, quantiles[first : first + len(group)], generator))
            first += len(group)
        return micro_batches


def _row(prompt: list[int], answer: list[int], shape: Shape, rng: random.Random) -> Row | None:
    """Return an example as a row, or None where it is too long."""
    short = len(prompt) + len(answer) + 1 + rng.randint(0, LARGEST_TAIL)
    length = shape.length if rng.random() < shape.long_share else min(short, shape.length)
    given = rng.randint(0, len(answer)) if rng.random() < shape.prefix_share else 0
    fits = len(prompt) + len(answer) < shape.length
    return Row(prompt + answer[:given], answer[given:], length) if fits else None


def _groups(rows: Sequence[Row], micro_tokens: int) -> Iterator[list[Row]]:
    """Cut sorted rows into groups of at most `micro_tokens` tokens with padding; each has at least one row."""
    group: list[Row] = []
    for row in rows:
        if group and row.length * (len(group) + 1) > micro_tokens:
            yield group
            group = []
        group.append(row)
    yield group


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of users' turns, each with the opening of its answer.

    Args:
        tokenizer: A tokenizer with a chat template.
        prompts: The texts of the users' turns.
    """
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


class StreamData(lightning.LightningDataModule):
    """A training stream that starts at the trainer's step, and a few validation batches.

    Args:
        stream: A function that builds a `BatchStream` from `split` and `start`.
        workers: The number of processes that prepare training batches; with 0 the training itself prepares them.
    """

    def __init__(self, stream: Callable[..., BatchStream], workers: int = 0) -> None:
        super().__init__()
        self.stream = stream
        self.workers = workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the training batches from the trainer's step on."""
        step = self.trainer.global_step if self.trainer else 0
        return DataLoader(self.stream(start=step), batch_size=None, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches, which are the same in every run of one seed."""
        stream = self.stream(split="validation")
        batches = [stream.batch(number) for number in range(VALIDATION_BATCHES)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
