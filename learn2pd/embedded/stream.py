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
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedTokenizerBase

from learn2pd.embedded.examples import Example, ExampleSource
from learn2pd.embedded.objectives import MicroBatch, Objective, Row
from learn2pd.errors import UserError

LARGEST_TAIL = 24  # end-of-text tokens after the first one, behind an answer that is not padded to the full length
VALIDATION_BATCHES = 8
Batch = list[MicroBatch]


@dataclass
class Shape:
    """How examples become rows, and rows batches.

    Args:
        batch_examples: The number of examples of an optimizer step.
        micro_tokens: The number of tokens, padding included, that go through the network at once. It should be small
            enough for the processor's caches.
        length: The number of tokens of the longest row, prompt and canvas together. Longer examples are left out.
        long_share: The share of examples that are padded to `length`. The others get a short tail of end-of-text.
        prefix_share: The share of examples whose answer is given up to a random place, as if it belonged to the prompt.
            A decoder that works block by block meets such states.

    Raises:
        ValueError: A number makes no sense; the message has its name.
    """

    batch_examples: int = 64
    micro_tokens: int = 1536
    length: int = 320
    long_share: float = 0.03
    prefix_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("batch_examples", "micro_tokens", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"shape.{name}={getattr(self, name)}: expected at least 1")
        for name in ("long_share", "prefix_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"shape.{name}={getattr(self, name)}: expected a number from 0 to 1")


@dataclass(frozen=True)
class Leg:
    """A part of a training with an objective of its own.

    Attributes:
        steps: The number of optimizer steps.
        objective: What the network is asked for.
        shape: How examples become batches.
    """

    steps: int
    objective: Objective
    shape: Shape


class BatchStream(IterableDataset[Batch]):
    """The batches number `start`, `start + 1`, and so on without an end.

    Each leg's objective holds for as many batches as the leg has steps, and the last leg's holds for ever.

    Args:
        source: The source of the examples.
        tokenizer: A tokenizer with a chat template.
        legs: The parts of the training; at least one.
        seed: The seed of all random choices. Two streams of one seed are equal.
        split: The split of the examples, `train` or `validation`.
        start: The number of the first batch.
    """

    def __init__(
        self,
        source: ExampleSource,
        tokenizer: PreTrainedTokenizerBase,
        legs: Sequence[Leg],
        seed: int,
        split: str = "train",
        start: int = 0,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.legs = legs
        self.seed = seed
        self.split = split
        self.start = start

    def __iter__(self) -> Iterator[Batch]:
        for number in itertools.count(self.start):
            yield self.batch(number, self._leg(number))

    def _leg(self, number: int) -> Leg:
        for leg in self.legs:
            if number < leg.steps:
                return leg
            number -= leg.steps
        return self.legs[-1]

    def batch(self, number: int, leg: Leg) -> Batch:
        """One batch.

        Args:
            number: The number of the batch.
            leg: The leg that says how the batch is made.

        Raises:
            UserError: No example is short enough.
        """
        rng = random.Random(f"{self.seed}/{self.split}/{number}")
        examples = self.source.draw(self.split, leg.shape.batch_examples, rng)
        encoded = [self._row(example, leg.shape, rng) for example in examples]
        rows = sorted((row for row in encoded if row is not None), key=lambda row: row.length)
        if not rows:
            raise UserError(
                f"shape.length={leg.shape.length}: none of {len(examples)} examples is that short; give a larger length"
            )
        generator = torch.Generator().manual_seed(rng.getrandbits(48))
        shift = torch.rand((), generator=generator)
        quantiles = (shift + torch.randperm(len(rows), generator=generator) / len(rows)) % 1.0
        micro_batches = []
        first = 0
        for group in _groups(rows, leg.shape.micro_tokens):
            micro_batches.append(leg.objective(group, quantiles[first : first + len(group)], generator))
            first += len(group)
        return micro_batches

    def _row(self, example: Example, shape: Shape, rng: random.Random) -> Row | None:
        """An example as a row, or None where it is too long."""
        prompt = chat_ids(self.tokenizer, example.prompt)
        answer = self.tokenizer.encode(example.answer, add_special_tokens=False)
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


def chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The token ids of a user's turn and the opening of the answer.

    Args:
        tokenizer: A tokenizer with a chat template.
        prompt: The text of the user's turn.
    """
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(text, add_special_tokens=False))


class StreamData(lightning.LightningDataModule):
    """A training stream that starts at the trainer's step, and a few validation batches of the last leg.

    Args:
        stream: A function that builds a `BatchStream` from `split` and `start`.
    """

    def __init__(self, stream: Callable[..., BatchStream]) -> None:
        super().__init__()
        self.stream = stream

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training batches from the trainer's step on."""
        step = self.trainer.global_step if self.trainer else 0
        return DataLoader(self.stream(start=step), batch_size=None)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation batches, which are the same in every run of one seed."""
        stream = self.stream(split="validation")
        batches = [stream.batch(number, stream.legs[-1]) for number in range(VALIDATION_BATCHES)]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
