"""What a task is: answers judged by a checker and, of the built-in tasks, problems drawn from a generator.

A task knows nothing of models or tokens. Every problem has *many* equally good answers (wording, order, names, layout);
the choices must agree within one answer, which is what makes parallel decoding hard, and every checker accepts each of
them and rejects a mixture.

Splits are disjoint by content: the facts of a problem, not its wording, decide by hash whether it is train, validation
    or test, and one
in eight *combinations* (sequences of operations, sets of fields) is kept for the test split alone.
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
        """What `check` needs, out of a prompt and a reference answer; JSON values only, and nothing where they leave
        nothing to judge.

        Raises:
            ValueError: the reference answer is no answer of this task, so that its prompt is not to be used.
        """

    def check(self, facts: dict[str, Any], text: str) -> Verdict:
        """Judge any text; never raises on model output."""


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
            totals: sums by name of the count; each an array with one sum for each resample.
            answers: how many verdicts are in a sum.
        """


class Task(Checker, Protocol):
    """A checker that also generates its problems."""

    def draw(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        """Facts of a new problem and the combination they show."""

    def prompt(self, facts: dict[str, Any], rng: random.Random) -> str:
        """One wording of the problem."""

    def answer(self, facts: dict[str, Any], rng: random.Random) -> str:
        """One of the valid answers."""


def _bucket(text: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % buckets


def is_held_out(task: str, combination: str) -> bool:
    """True for the combinations that only the test split shows."""
    return combination != "" and _bucket(f"{task}|{combination}", 8) == 0


def split_of(task: str, facts: dict[str, Any], combination: str) -> str:
    """The one split a problem belongs to; a function of its content alone."""
    if is_held_out(task, combination):
        return "test"
    place = _bucket(f"{task}|{json.dumps(facts, sort_keys=True)}", 20)
    return {0: "validation", 1: "test"}.get(place, "train")


def problems(task: Task, split: str, seed: int) -> Iterator[Problem]:
    """An endless, deterministic stream of distinct problems of one split.

    Args:
        task: where the problems come from.
        split: `train`, `validation` or `test`.
        seed: two streams of one task, split and seed are identical.

    Raises:
        ValueError: for an unknown split.
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
        if (
            split != "train"
        ):  # the training stream is endless: repeats are rare there and a growing set is not worth them
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
    """Draw a key with probability proportional to its value."""
    return rng.choices(list(choices), weights=list(choices.values()))[0]
