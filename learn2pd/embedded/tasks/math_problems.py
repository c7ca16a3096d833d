"""Task `math`: word problems of one to four events. A solution has a line for each step and ends with `#### N`.

Some choices are free but must agree within an answer: how step lines begin, the verb before a result, whether the unit
is named, and the verb of the optional opening and closing sentences. The order of the operands of + and * is free in
every line.
"""

from __future__ import annotations

import operator
import random
import re
from typing import Any

from learn2pd.data.tasks.base import Verdict, weighted
from learn2pd.embedded.tasks.vocabulary import ITEMS, PEOPLE

LARGEST = 24  # no number in a problem or its solution exceeds this
EVENTS = {"gain": 3.0, "lose": 3.0, "double": 1.0, "halve": 1.0, "packs": 0.5}
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}

LEADS = {"plain": 4.0, "step": 3.0, "number": 2.0, "then": 3.0, "next": 2.0, "dash": 2.0}
VERBS = {" = ": 4.0, " gives ": 3.0, " makes ": 3.0}
FRAMES = {
    "starts/ends": ("starts with", "ends with"),
    "begins/finishes": ("begins with", "finishes with"),
    "has/has": ("has", "now has"),
}

# A number is ASCII and short; longer and stranger ones are never right, and the checker does not convert them.
NUMBER = r"(?:0|[1-9][0-9]{0,5})"
STEP = re.compile(
    rf"(?P<lead>.*?)(?P<a>{NUMBER}) (?P<op>[-+*/]) (?P<b>{NUMBER})"
    rf"(?P<verb> = | gives | makes )(?P<result>{NUMBER})(?P<unit>(?: [a-z]+)?)"
)


def lead(style: str, index: int) -> str:
    """Return how a step line begins.

    Args:
        style: A key of `LEADS`.
        index: The number of the step, counted from 0.
    """
    if style in ("then", "next"):
        return "First, " if index == 0 else f"{style.capitalize()}, "
    return {"plain": "", "step": f"Step {index + 1}: ", "number": f"{index + 1}) ", "dash": "- "}[style]


def worked_steps(facts: dict[str, Any]) -> list[tuple[int, str, int]]:
    """Return the arithmetic of a problem.

    Args:
        facts: The facts of the problem, as `MathTask.draw` makes them.

    Returns:
        The steps in their order, as (left, operator, right).
    """
    total = facts["start"]
    steps = []
    for kind, *numbers in facts["events"]:
        if kind == "packs":
            packs, each = numbers
            steps.append((packs, "*", each))
            step = (total, "+", packs * each)
        else:
            step = (total, {"gain": "+", "lose": "-", "double": "*", "halve": "/"}[kind], numbers[0])
        steps.append(step)
        total = APPLY[step[1]](step[0], step[2])
    return steps


class MathTask:
    """Word problems about a person who gains and loses things."""

    name = "math"

    def draw(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        """Draw the facts of a problem."""
        start = total = rng.randint(2, 14)
        events: list[list[Any]] = []
        for _ in range(weighted(rng, {1: 4, 2: 4, 3: 2, 4: 0.7})):
            event, total = self._draw_event(rng, total)
            events.append(event)
        facts = {"name": rng.choice(list(PEOPLE)), "item": rng.choice(ITEMS), "start": start, "events": events}
        return facts, "-".join(event[0] for event in events) if len(events) > 1 else ""

    def _draw_event(self, rng: random.Random, total: int) -> tuple[list[Any], int]:
        while True:
            kind = weighted(rng, EVENTS)
            if kind == "packs":
                packs, each = rng.randint(2, 3), rng.randint(2, 4)
                event, after = [kind, packs, each], total + packs * each
            elif kind in ("gain", "lose"):
                amount = rng.randint(2, 9)
                event, after = [kind, amount], total + (amount if kind == "gain" else -amount)
            elif kind == "double":
                event, after = [kind, 2], total * 2
            else:
                event, after = [kind, 2], total // 2 if total % 2 == 0 else -1
            if 1 <= after <= LARGEST:
                return event, after

    def prompt(self, facts: dict[str, Any], rng: random.Random) -> str:
        """Word a problem at random."""
        name, item = facts["name"], facts["item"]
        who = rng.choice([name, PEOPLE[name]])
        sentences = [f"{name} has {facts['start']} {item}."]
        for index, (kind, *numbers) in enumerate(facts["events"]):
            subject = rng.choice([f"Then {name}", who]) if index else who
            sentences.append(f"{subject} {self._event_words(kind, numbers, rng)}.")
        questions = [f"How many {item} does {name} have now?", f"How many {item} are there in the end?"]
        sentences.append(rng.choice(questions))
        return " ".join(sentences)

    @staticmethod
    def _event_words(kind: str, numbers: list[int], rng: random.Random) -> str:
        if kind == "packs":
            return rng.choice(["buys {} packs of {}", "gets {} boxes of {}"]).format(*numbers)
        choices = {
            "gain": ["buys {} more", "finds {} more", "gets {} from a friend"],
            "lose": ["gives away {}", "loses {}", "sells {}"],
            "double": ["doubles the number"],
            "halve": ["gives away half"],
        }[kind]
        return rng.choice(choices).format(*numbers)

    def answer(self, facts: dict[str, Any], rng: random.Random) -> str:
        """Write one of the right answers at random."""
        style, verb = weighted(rng, LEADS), weighted(rng, VERBS)
        unit = rng.choice(["", f" {facts['item']}"])
        opening, closing = FRAMES[rng.choice(list(FRAMES))]
        lines = [f"{opening} {facts['start']}{unit}"] if rng.random() < 0.4 else []
        total = facts["start"]
        for index, (a, op, b) in enumerate(worked_steps(facts)):
            total = APPLY[op](a, b)
            if op in "+*" and rng.random() < 0.5:
                a, b = b, a
            lines.append(f"{lead(style, index)}{a} {op} {b}{verb}{total}{unit}")
        if rng.random() < 0.4:
            lines.append(f"{closing} {total}{unit}")
        return "\n".join([*lines, f"#### {total}"])

    def facts(self, prompt: str, answer: str) -> dict[str, Any]:
        """Refuse problems that the task did not generate.

        Raises:
            ValueError: Always. Only the generator of a problem knows what makes an answer right.
        """
        raise ValueError("the task 'math' judges the problems of its own generator only")

    def check(self, facts: dict[str, Any], text: str) -> Verdict:
        """Say whether an answer takes the right steps, ends with the right number and is worded alike in all lines."""
        steps = worked_steps(facts)
        total = APPLY[steps[-1][1]](steps[-1][0], steps[-1][2])
        lines = text.strip().split("\n")
        if lines.pop() != f"#### {total}":
            return Verdict(False, f"the last line is not '#### {total}'")
        frames, units = set(FRAMES), {"", f" {facts['item']}"}
        for place, number, which in ((0, facts["start"], 0), (-1, total, 1)):
            framed = self._frame(lines[place] if lines else "", number, which)
            if framed:
                frames &= framed[0]
                units &= {framed[1]}
                lines.pop(place)
        if not frames:
            return Verdict(False, "opening and closing sentence do not go together")
        return self._check_steps(steps, lines, units)

    @staticmethod
    def _frame(line: str, number: int, which: int) -> tuple[set[str], str] | None:
        matches = re.fullmatch(rf"(.+) {number}((?: [a-z]+)?)", line)
        styles = {key for key, verbs in FRAMES.items() if matches and verbs[which] == matches[1]}
        return (styles, matches[2]) if matches and styles else None

    @staticmethod
    def _check_steps(steps: list[tuple[int, str, int]], lines: list[str], units: set[str]) -> Verdict:
        if len(lines) != len(steps):
            return Verdict(False, f"{len(lines)} step lines, {len(steps)} expected")
        styles, verbs = set(LEADS), set(VERBS)
        for index, (line, (a, op, b)) in enumerate(zip(lines, steps, strict=True)):
            step = STEP.fullmatch(line)
            if not step:
                return Verdict(False, f"not a step: {line!r}")
            operands = (int(step["a"]), int(step["b"]))
            if step["op"] != op or (operands != (a, b) and (op not in "+*" or operands != (b, a))):
                return Verdict(False, f"step {index + 1} should combine {a} {op} {b}: {line!r}")
            if int(step["result"]) != APPLY[op](a, b):
                return Verdict(False, f"wrong arithmetic: {line!r}")
            styles &= {style for style in LEADS if lead(style, index) == step["lead"]}
            verbs &= {step["verb"]}
            units &= {step["unit"]}
        if not (styles and verbs and units):
            return Verdict(False, "step lines are not worded alike")
        return Verdict(True)
