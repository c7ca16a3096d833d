"""Where the embedded models' training examples come from: generated problems, or requests that people wrote.

Both draw an answer at random among equally good ones (wording, order of keys, layout). That choice is what makes decoding in parallel hard.
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

CORPUS_PROBLEMS = 6000  # a task, for the tokenizer


@dataclass(frozen=True)
class Example:
    prompt: str
    answer: str


class ExampleSource(Protocol):
    def draw(self, split: str, count: int, rng: random.Random) -> list[Example]:
        """Draw examples of a split (`train`, `validation`); equal generators give equal examples."""

    def corpus(self) -> Iterator[str]:
        """The training texts that a tokenizer is learnt from, the same in every run."""


class ProblemExamples:
    """Problems of the built-in tasks, in equal shares."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks

    def draw(self, split: str, count: int, rng: random.Random) -> list[Example]:
        drawn = []
        for index, task in enumerate(self.tasks):
            share = count // len(self.tasks) + (index < count % len(self.tasks))
            stream = problems(task, split, rng.getrandbits(48))
            drawn += [Example(problem.prompt, problem.answer) for problem in itertools.islice(stream, share)]
        return drawn

    def corpus(self) -> Iterator[str]:
        for task in self.tasks:
            for problem in itertools.islice(problems(task, "train", 1), CORPUS_PROBLEMS):
                yield problem.prompt
                yield problem.answer


@dataclass(frozen=True)
class Request:
    """A request with its record. `pieces` is the request cut at the values of its slots: text, slot or None."""

    prompt: str
    record: dict[str, Any]
    pieces: tuple[tuple[str, str | None], ...]  # empty where a value does not stand in the request exactly once


class RequestExamples:
    """Requests with their records; training swaps values between requests of the same intent and slot, so that copying is learnt.

    Args:
        train: prompts with records, in the order of the file.
        validation: the same, never varied.
        swap_share: probability that a value is replaced.
        invent_share: probability that a replaced value is made up of words of several values, where the slot has many values.
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
        return [self._varied(rng.choice(self.requests[split]), rng) for _ in range(count)]

    def corpus(self) -> Iterator[str]:
        rng = random.Random(0)
        for request in self.requests["train"]:
            yield request.prompt
            yield write_record(request.record, rng)

    def _varied(self, request: Request, rng: random.Random) -> Example:
        if not request.pieces:
            return Example(request.prompt, write_record(request.record, rng))
        record, texts = dict(request.record), []
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
    """A request as pieces of text, each with the slot whose value it is, or None.

    Returns:
        The pieces in order; empty where a value is blank or no text, or does not stand in the request exactly once as whole
        words, or overlaps another.
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
    """A record as JSON, its keys in random order, in one of three layouts."""
    layout = LAYOUTS[rng.choice(list(LAYOUTS))]
    return json.dumps({key: record[key] for key in rng.sample(list(record), len(record))}, ensure_ascii=False, **layout)
