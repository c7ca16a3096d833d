"""Where prompts come from: built-in tasks, a JSONL file, a data set of the hub. All become the same list.

Splits are by prompt. Built-in tasks bring their own; other prompts are shuffled by the seed and dealt out in order.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learn2pd.data.tasks import SPLITS, TASK_NAMES, build_task, problems
from learn2pd.data.tasks.final_number import last_number
from learn2pd.data.tasks.slots import unique_keys
from learn2pd.errors import UserError, suggest

log = logging.getLogger(__name__)
LINES_SHOWN = 10


@dataclass(frozen=True)
class Prompt:
    id: str
    text: str
    split: str
    task: str | None = None  # which checker judges an answer; None where none can
    facts: dict[str, Any] = field(default_factory=dict)
    held_out: bool = False  # shows a combination that training never saw


def task_prompts(tasks: Sequence[str], counts: dict[str, int], seed: int) -> list[Prompt]:
    """Problems of the built-in tasks.

    Args:
        tasks: names.
        counts: split -> number of prompts over all tasks together, shared out as evenly as possible.
        seed: of the streams.

    Raises:
        UserError: unknown task.
    """
    found = []
    for place, name in enumerate(tasks):
        if name not in TASK_NAMES:
            raise UserError(f"data.tasks: unknown task {name!r}{suggest(name, TASK_NAMES)}; expected some of {', '.join(TASK_NAMES)}")
        task = build_task(name)
        for split, count in counts.items():
            share = count // len(tasks) + (place < count % len(tasks))
            for problem in itertools.islice(problems(task, split, seed), share):
                found.append(Prompt(problem.id, problem.prompt, split, name, problem.facts, problem.held_out))
    return found


def jsonl_records(path: str | Path, key: str = "data.path") -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of a JSONL file and a complaint for every line that holds none.

    Args:
        path: of the file.
        key: what the configuration calls it.

    Raises:
        UserError: the file is missing, not text, or empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # other separators may stand inside a text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={str(path)!r}: cannot be read ({str(error).splitlines()[0]}); expected a JSONL file in UTF-8") from error
    if not any(line.strip() for line in lines):
        raise UserError(f"{key}={str(path)!r}: the file is empty; expected one JSON object a line")
    records, complaints = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            complaints.append(f"line {number}: not JSON ({error})")
            continue
        if isinstance(record, dict):
            records.append({"__line__": number} | record)
        else:
            complaints.append(f"line {number}: not an object but {type(record).__name__}")
    return records, complaints


def hub_records(name: str, subset: str | None, split: str) -> list[dict[str, Any]]:
    """The rows of a data set of the hub.

    Raises:
        UserError: it cannot be had.
    """
    import datasets

    try:
        rows = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"data.path={name!r}: the hub data set could not be loaded ({str(error).splitlines()[0]}); data.source=jsonl reads a local file"
        ) from error
    return [{"__line__": number} | row for number, row in enumerate(rows, 1)]


def field_prompts(
    records: Iterable[dict[str, Any]], complaints: list[str], prompt_field: str, answer_field: str | None, counts: dict[str, int], seed: int
) -> list[Prompt]:
    """Prompts out of records; a record that lacks the field is skipped and counted.

    Args:
        records: with `__line__` where each came from.
        complaints: about lines that are no records; extended, logged, and fatal only if nothing is left.
        prompt_field, answer_field: names; the last number of the answer field is the right answer.
        counts: split -> how many prompts it gets.

    Raises:
        UserError: no usable prompt, or fewer than the counts ask for.
    """
    usable: dict[str, tuple[str, dict[str, Any]]] = {}
    for record in records:
        text = record.get(prompt_field)
        if not isinstance(text, str) or not text.strip():
            fields = ", ".join(key for key in record if key != "__line__") or "none"
            complaints.append(f"line {record['__line__']}: no text in the field {prompt_field!r} (its fields: {fields})")
            continue
        number = last_number(str(record.get(answer_field, ""))) if answer_field else None
        identifier = hashlib.sha256(text.encode()).hexdigest()[:16]
        usable[identifier] = (text, {} if number is None else {"number": number})
    if complaints:
        shown = "; ".join(complaints[:LINES_SHOWN]) + ("; ..." if len(complaints) > LINES_SHOWN else "")
        if not usable:
            raise UserError(f"none of the {len(complaints)} lines holds a prompt: {shown}")
        log.warning("%d lines skipped, %d prompts left: %s", len(complaints), len(usable), shown)
    if len(usable) < len(SPLITS):
        raise UserError(f"{len(usable)} different prompts are too few for train, validation and test: expected at least {len(SPLITS)}")
    order = sorted(usable)
    random.Random(seed).shuffle(order)
    return _deal(order, usable, _scaled(counts, len(order)))


def _scaled(counts: dict[str, int], available: int) -> dict[str, int]:
    """The counts, or where there are too few prompts the same proportions of what there is, at least one each."""
    asked = sum(counts.values())
    if asked <= available:
        return counts
    scaled = {split: max(1, count * available // asked) for split, count in counts.items()}
    scaled["train"] = available - sum(count for split, count in scaled.items() if split != "train")
    log.warning("%d prompts asked for, %d there: using %s", asked, available, ", ".join(f"{count} {split}" for split, count in scaled.items()))
    return scaled


def _deal(order: list[str], usable: dict[str, tuple[str, dict[str, Any]]], counts: dict[str, int]) -> list[Prompt]:
    rest = iter(order)
    found = []
    for split, count in counts.items():
        for identifier in itertools.islice(rest, count):
            text, facts = usable[identifier]
            found.append(Prompt(identifier, text, split, "final_number" if facts else None, facts))
    return found


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """16 hex digits of ids, texts and splits in order."""
    joined = json.dumps([(prompt.id, prompt.text, prompt.split) for prompt in prompts])
    return hashlib.sha256(joined.encode()).hexdigest()[:16]
