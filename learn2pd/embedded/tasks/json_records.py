"""Task `json`: facts in sentences, or a small table, become a JSON record or a list of records.

Some choices are free but must agree within an answer: the layout (compact, spaced, indented) and, in a list of records,
the order of the keys. The order of the keys of a single record is free, and so is that of a list of hobbies.
How texts and numbers are written is free as well, such as "\\u00fc" or 1.50.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

from learn2pd.data.tasks.base import Verdict, weighted
from learn2pd.data.tasks.slots import unique_keys
from learn2pd.embedded.tasks.vocabulary import CITIES, HOBBIES, JOBS, PEOPLE, PET_NAMES, PETS, TEAMS

LAYOUTS: dict[str, dict[str, Any]] = {"compact": {"separators": (",", ":")}, "spaced": {}, "indented": {"indent": 2}}
SCALAR = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s\[\]{}:,"]+')
AGES = (18, 40)
COLUMNS = ["age", "city", "job", "team"]


class JsonTask:
    """Facts about people that are to be written as JSON."""

    name = "json"

    def draw(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        """Draw the facts of a problem: a table in three of ten cases, else a person."""
        return self._draw_table(rng) if rng.random() < 0.3 else self._draw_person(rng)

    def _draw_person(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        fields = rng.sample(["age", "city", "job", "likes", "pet"], weighted(rng, {1: 2, 2: 3, 3: 3, 4: 1.5, 5: 0.5}))
        values = {
            "age": rng.randint(*AGES),
            "city": rng.choice(CITIES),
            "job": rng.choice(JOBS),
            "likes": sorted(rng.sample(HOBBIES, weighted(rng, {1: 4, 2: 3, 3: 0.5}))),
            "pet": {"kind": rng.choice(PETS), "name": rng.choice(PET_NAMES)},
        }
        record = {"name": rng.choice(list(PEOPLE))} | {field: values[field] for field in fields}
        return {"record": record}, "person:" + "-".join(sorted(fields)) if len(fields) > 1 else ""

    def _draw_table(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        columns = rng.sample(COLUMNS, weighted(rng, {1: 4, 2: 3, 3: 1}))
        names = rng.sample(list(PEOPLE), weighted(rng, {2: 6, 3: 4, 4: 2, 5: 0.7, 6: 0.3, 9: 0.2}))
        values = {"city": CITIES, "job": JOBS, "team": TEAMS, "age": range(AGES[0], AGES[1] + 1)}
        rows = [{"name": name} | {column: rng.choice(values[column]) for column in columns} for name in names]
        return {"record": rows}, "table:" + "-".join(sorted(columns)) if len(columns) > 1 else ""

    def prompt(self, facts: dict[str, Any], rng: random.Random) -> str:
        """Word a problem at random."""
        record = facts["record"]
        if isinstance(record, list):
            rows = ["|".join(record[0]), *("|".join(map(str, row.values())) for row in record)]
            return rng.choice(["Turn this table into JSON:", "Table to JSON:"]) + "\n" + "\n".join(rows)
        name = record["name"]
        sentences = [f"A person named {name}."]
        for field, value in record.items():
            if field != "name":
                sentences.append(f"{rng.choice([name, PEOPLE[name]])} {self._field_words(field, value, rng)}.")
        return " ".join([*sentences, rng.choice(["Write this as JSON.", "Give the JSON record."])])

    @staticmethod
    def _field_words(field: str, value: Any, rng: random.Random) -> str:
        if field == "likes":
            entries = rng.sample(value, len(value))
            verb = rng.choice(["likes ", "enjoys "])
            return verb + ", ".join(entries[:-1]) + (" and " if len(entries) > 1 else "") + entries[-1]
        if field == "pet":
            return rng.choice(["has a {kind} called {name}", "owns a {kind} called {name}"]).format(**value)
        choices = {
            "age": ["is {} years old", "is {}"],
            "city": ["lives in {}", "is from {}"],
            "job": ["works as a {}", "is a {}"],
        }[field]
        return rng.choice(choices).format(value)

    def answer(self, facts: dict[str, Any], rng: random.Random) -> str:
        """Write one of the right answers at random."""
        layout = LAYOUTS[weighted(rng, {"compact": 3, "spaced": 4, "indented": 3})]
        record = facts["record"]
        if isinstance(record, list):
            order = rng.sample(list(record[0]), len(record[0]))
            return json.dumps([{key: row[key] for key in order} for row in record], **layout)
        return json.dumps(self._shuffled(record, rng), **layout)

    def _shuffled(self, value: Any, rng: random.Random) -> Any:
        if isinstance(value, dict):
            return {key: self._shuffled(value[key], rng) for key in rng.sample(list(value), len(value))}
        return rng.sample(value, len(value)) if isinstance(value, list) else value

    def facts(self, prompt: str, answer: str) -> dict[str, Any]:
        """The record of a reference answer in JSON.

        An answer's layout is judged only where the reference has one of the layouts that the task knows.

        Raises:
            ValueError: The answer is not JSON, a key stands twice in it, or it is nested too deeply.
        """
        try:
            record = _parsed(answer)
            facts = {"record": record} if _has_known_layout(answer, record) else {"record": record, "any_layout": True}
        except RecursionError as error:
            raise ValueError("the answer is nested too deeply") from error
        verdict = self.check(facts, answer)
        if not verdict.correct:
            raise ValueError(f"the answer is {verdict.reason}")
        return facts

    def check(self, facts: dict[str, Any], text: str) -> Verdict:
        """Whether an answer holds the facts in one layout and with one order of the keys."""
        try:
            reason = _fault(facts, text)
        except RecursionError:
            reason = "nested too deeply"
        return Verdict(not reason, reason)


def _parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON, or a key stands twice in it.
        RecursionError: It is nested too deeply.
    """
    return json.loads(text.strip(), object_pairs_hook=unique_keys, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no value of JSON")


def _fault(facts: dict[str, Any], text: str) -> str:
    """Why an answer is wrong; empty where it is right.

    Raises:
        RecursionError: The answer is nested too deeply.
    """
    expected = facts["record"]
    try:
        record = _parsed(text)
    except ValueError as error:
        return f"not JSON: {error}"
    if not _same(record, expected):
        return "the record differs from the facts"
    if _key_orders(record) > 1 and _key_orders(expected) == 1:
        return "the records order their keys differently"
    if "any_layout" not in facts and not _has_known_layout(text, record):
        return "mixed layout"
    return ""


def _key_orders(value: Any) -> int:
    """In how many orders the rows of a table have their keys; none where the value is no table."""
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        return 0
    return len({tuple(row) for row in value})


def _has_known_layout(text: str, value: Any) -> bool:
    """Whether a JSON text with this value is laid out in one of the known ways, however it writes texts and numbers."""
    outline = _outline(text.strip())
    return any(_outline(json.dumps(value, **layout)) == outline for layout in LAYOUTS.values())


def _outline(text: str) -> str:
    """A JSON text with an asterisk for every text, number and constant in it."""
    return SCALAR.sub("*", text)


def _same(given: Any, expected: Any) -> bool:
    """Whether two values are equal; a list of hobbies may come in any order, and a list of records may not."""
    if type(given) is not type(expected):
        return False
    if isinstance(expected, dict):
        return given.keys() == expected.keys() and all(_same(given[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        if all(isinstance(entry, str) for entry in [*given, *expected]):
            return sorted(given) == sorted(expected)
        return len(given) == len(expected) and all(map(_same, given, expected))
    return bool(given == expected)
