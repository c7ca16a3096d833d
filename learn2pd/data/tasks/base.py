"""The interface of tasks. A task has a checker that judges answers; the built-in tasks also generate their problems.

A task knows nothing of models or tokens. Every built-in problem has *many* equally good answers, which differ in
wording, order, names or layout. The choices must agree within one answer, and this makes parallel decoding hard. A
checker accepts each of the good answers and rejects a mixture of them.

The splits are disjoint by content. A hash of a problem's facts, and not of its wording, decides whether the problem is
in train, validation or test. One in eight *combinations* (sequences of operations, sets of fields) is kept for the test
split alone.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from learn2pd.data.sandbox import Sandbox

SPLITS = ("train", "validation", "test")
HELD_OUT_EVERY = 4  # each fourth test problem shows a combination that training never saw


@dataclass(frozen=True)
class Problem:
    """One prompt with the facts its checker needs.

    `answer` is one valid answer drawn at random, for training the embedded dLLM; it is not *the* answer.
    """

    task: str
    id: str
    prompt: str
    answer: str
    facts: dict[str, Any]  # JSON values only
    combination: str  # "" where the problem combines nothing
    held_out: bool = False  # the combination is one that training never sees


@dataclass(frozen=True)
class Verdict:
    """The judgement of one answer."""

    correct: bool
    reason: str = ""  # one line, empty when correct
    counts: dict[str, int] = field(default_factory=dict)  # how near the answer comes, where the checker says so


class Checker(Protocol):
    """Judges answers."""

    name: str

    def facts(self, prompt: str, answer: str) -> dict[str, Any]:
        """Extract the facts that `check` needs.

        Args:
            prompt: The text of the prompt.
            answer: The reference answer.

        Returns:
            JSON values by name. They are empty where an answer to this prompt cannot be judged.

        Raises:
            ValueError: The reference answer is not an answer of this task, so that the prompt must not be used.
        """

    def check(self, facts: dict[str, Any], text: str) -> Verdict:
        """Judge any text. The method never raises because of a model's output.

        Args:
            facts: The facts of the prompt.
            text: The answer.
        """


@runtime_checkable
class ProgramChecker(Checker, Protocol):
    """Judges programs by running them."""

    sandbox: Sandbox


@runtime_checkable
class ScoringChecker(Checker, Protocol):
    """Says beside right and wrong how near answers come."""

    def shares(self, totals: Mapping[str, NDArray[np.float64]], answers: int) -> dict[str, NDArray[np.float64]]:
        """Scores by name, out of the sums of the counts of verdicts.

        Args:
            totals: Sums by name of the count; each an array with one sum for each resample.
            answers: How many verdicts are in a sum.
        """


class Task(Checker, Protocol):
    """A checker that also generates its problems."""

    def draw(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        """Draw the facts of a new problem, and name the combination that they show."""

    def prompt(self, facts: dict[str, Any], rng: random.Random) -> str:
        """Draw one wording of the problem with these facts."""

    def answer(self, facts: dict[str, Any], rng: random.Random) -> str:
        """Draw one of the valid answers to the problem with these facts."""


def _bucket(text: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % buckets


def is_held_out(task: str, combination: str) -> bool:
    """Say whether only the test split shows a combination of a task.

    Args:
        task: The name of the task.
        combination: The combination; the empty text is none.
    """
    return combination != "" and _bucket(f"{task}|{combination}", 8) == 0


def split_of(task: str, facts: dict[str, Any], combination: str) -> str:
    """Return the split of a problem. It depends on the content of the problem alone.

    Args:
        task: The name of the task.
        facts: The facts of the problem.
        combination: The combination that they show.
    """
    if is_held_out(task, combination):
        return "test"
    place = _bucket(f"{task}|{json.dumps(facts, sort_keys=True)}", 20)
    return {0: "validation", 1: "test"}.get(place, "train")


def problems(task: Task, split: str, seed: int) -> Iterator[Problem]:
    """An endless, deterministic stream of distinct problems of one split.

    Args:
        task: Where the problems come from.
        split: `train`, `validation` or `test`.
        seed: Two streams of one task, split and seed are identical.

    Raises:
        ValueError: The split is unknown.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: expected one of {', '.join(SPLITS)}")
    rng = random.Random(f"{task.name}/{split}/{seed}")
    seen: set[str] = set()
    count = 0
    while True:
        want_held_out = split == "test" and count % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        facts, combination = task.draw(rng)
        held_out = is_held_out(task.name, combination)
        if split_of(task.name, facts, combination) != split or held_out != want_held_out:
            continue
        content = json.dumps(facts, sort_keys=True)
        # the stream of training is endless; repeats are so rare in it that a growing set of all problems does not pay
        if split != "train":
            if content in seen:
                continue
            seen.add(content)
        yield Problem(
            task=task.name,
            id=f"{task.name}/{split}/{seed}/{count}",
            prompt=task.prompt(facts, rng),
            answer=task.answer(facts, rng),
            facts=facts,
            combination=combination,
            held_out=held_out,
        )
        count += 1


def weighted(rng: random.Random, choices: dict[Any, float]) -> Any:
    """Draw a key with probability proportional to its value.

    Args:
        rng: The source of randomness.
        choices: The weight of each key.
    """
    return rng.choices(list(choices), weights=list(choices.values()))[0]
