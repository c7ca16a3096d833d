"""Where the embedded models' training examples come from: generated problems, or requests that people wrote.

Both draw an answer at random among equally good ones (wording, order of keys, layout). This choice makes decoding in
parallel hard.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from learn2pd.data.tasks import Task, problems
from learn2pd.embedded.tasks.json_records import LAYOUTS

CORPUS_PROBLEMS = 6000  # problems of each task that a tokenizer is learnt from


@dataclass(frozen=True)
class Example:
    """One prompt with one right answer."""

    prompt: str
    answer: str


class ExampleSource(Protocol):
    """A source of examples for training and validation."""

    def draw(self, split: str, count: int, rng: random.Random) -> list[Example]:
        """Draw examples of a split; generators in equal states give equal examples.

        Args:
            split: `train` or `validation`.
            count: The number of examples.
            rng: The generator of all random choices.
        """

    def corpus(self) -> Iterator[str]:
        """Yield the training texts that a tokenizer is learnt from, which are the same in every run."""


class ProblemExamples:
    """Problems of the built-in tasks, in equal shares; a task that is named twice has two of them.

    Args:
        tasks: The tasks that generate the problems.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks

    def draw(self, split: str, count: int, rng: random.Random) -> list[Example]:
        """Draw the same number of problems for every task named; the first give one more where the count is uneven."""
        drawn = []
        for index, task in enumerate(self.tasks):
            share = count // len(self.tasks) + (index < count % len(self.tasks))
            stream = problems(task, split, rng.getrandbits(48))
            drawn += [Example(problem.prompt, problem.answer) for problem in itertools.islice(stream, share)]
        return drawn

    def corpus(self) -> Iterator[str]:
        """Yield prompts and answers of the first training problems of every task, whatever its share."""
        for task in {task.name: task for task in self.tasks}.values():
            for problem in itertools.islice(problems(task, "train", 1), CORPUS_PROBLEMS):
                yield problem.prompt
                yield problem.answer


@dataclass(frozen=True)
class Request:
    """A request with its record.

    Attributes:
        prompt: The request.
        record: The intent and the values of the slots.
        pieces: The request cut at the values of its slots, as pairs of a text and its slot or None. It is empty where
            a value does not stand in the request exactly once.
    """

    prompt: str
    record: dict[str, Any]
    pieces: tuple[tuple[str, str | None], ...]


class RequestExamples:
    """Requests with their records.

    Training swaps values between requests of the same intent and slot, so that a model learns to copy.

    Args:
        train: Prompts with records, in the order of the file.
        validation: Prompts with records that are never varied.
        swap_share: The probability that a value is replaced.
        invent_share: The probability that a replacing value is made up of words of several values. It applies to slots
            with many values.
    """

    MANY_VALUES = 200

    def __init__(
        self,
        train: Sequence[tuple[str, dict[str, Any]]],
        validation: Sequence[tuple[str, dict[str, Any]]],
        swap_share: float,
        invent_share: float,
    ) -> None:
        self.requests = {
            "train": [Request(prompt, record, cut(prompt, record)) for prompt, record in train],
            "validation": [Request(prompt, record, ()) for prompt, record in validation],
        }
        self.swap_share = swap_share
        self.invent_share = invent_share
        self.values: dict[tuple[str, str], list[str]] = {}
        for request in self.requests["train"]:
            for text, slot in request.pieces:
                if slot is not None:
                    self.values.setdefault((request.record["intent"], slot), []).append(text)
        self.values = {place: sorted(set(values)) for place, values in self.values.items()}

    def draw(self, split: str, count: int, rng: random.Random) -> list[Example]:
        """Draw requests with replacement, varied in their values and in the layout of their answers."""
        return [self._varied(rng.choice(self.requests[split]), rng) for _ in range(count)]

    def corpus(self) -> Iterator[str]:
        """Yield every training request as it is in the file, and its answer in one of the layouts."""
        rng = random.Random(0)
        for request in self.requests["train"]:
            yield request.prompt
            yield write_record(request.record, rng)

    def _varied(self, request: Request, rng: random.Random) -> Example:
        if not request.pieces:
            return Example(request.prompt, write_record(request.record, rng))
        record = dict(request.record)
        texts = []
        for text, slot in request.pieces:
            if slot is not None and rng.random() < self.swap_share:
                text = self._other_value(self.values[record["intent"], slot], rng)
            if slot is not None:
                record[slot] = text
            texts.append(text)
        return Example("".join(texts), write_record(record, rng))

    def _other_value(self, values: Sequence[str], rng: random.Random) -> str:
        if len(values) < self.MANY_VALUES or rng.random() >= self.invent_share:
            return rng.choice(values)
        length = len(rng.choice(values).split())
        return " ".join(rng.choice(rng.choice(values).split()) for _ in range(length))


def cut(prompt: str, record: dict[str, Any]) -> tuple[tuple[str, str | None], ...]:
    """Cut a request into pieces of text, each with the slot whose value it is, or None.

    Args:
        prompt: The request.
        record: The intent and the values of the slots.

    Returns:
        The pieces in their order. The result is empty where a value is blank or no text, where it does not stand in
        the request exactly once as whole words, and where it overlaps another value.
    """
    spans = []
    for slot, value in record.items():
        if slot == "intent":
            continue
        first = prompt.find(value) if isinstance(value, str) and value.strip() else -1
        if first < 0 or prompt.find(value, first + 1) >= 0:
            return ()
        spans.append((first, first + len(value), slot))
    spans.sort()
    pieces: list[tuple[str, str | None]] = []
    end = 0
    for first, last, slot in spans:
        whole = not prompt[first - 1 : first].isalnum() and not prompt[last : last + 1].isalnum()
        if first < end or not whole:
            return ()
        pieces += [(prompt[end:first], None), (prompt[first:last], slot)]
        end = last
    return (*pieces, (prompt[end:], None))


def write_record(record: dict[str, Any], rng: random.Random) -> str:
    """Write a record as JSON with its keys in random order, in one of three layouts.

    Args:
        record: The record, whose keys are texts.
        rng: The generator that chooses layout and order.
    """
    layout = LAYOUTS[rng.choice(list(LAYOUTS))]
    shuffled = {key: record[key] for key in rng.sample(list(record), len(record))}
    return json.dumps(shuffled, ensure_ascii=False, **layout)
