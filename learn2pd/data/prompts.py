"""Prompts for every stage of a run, made from built-in tasks or from the records of files and data sets.

Every prompt belongs to one split. Built-in tasks have their own splits. Other prompts are shuffled by the seed and
dealt out to the splits, unless validation or test have a file of their own. Two prompts count as the same prompt if
their texts are equal after white space at both ends is removed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Protocol

from learn2pd.data.reading import Record, Records
from learn2pd.data.tasks import SPLITS, Checker, Task, problems
from learn2pd.errors import UserError, suggest

log = logging.getLogger(__name__)
LINES_SHOWN = 10
CHARACTERS_SHOWN = 60
Messages = tuple[tuple[str, str], ...]  # role and content of each turn of a conversation


@dataclass(frozen=True)
class Prompt:
    """A question to the model, with the facts by which its answer is judged.

    Attributes:
        id: The name of the prompt in recordings. Equal texts have equal ids.
        text: The text. For a conversation, its turns in a form for people to read.
        split: Train, validation or test.
        task: The name of the checker that judges an answer; None where no checker can.
        facts: The facts that the checker needs.
        held_out: Whether the prompt shows a combination that training never saw.
        messages: The turns of a conversation; empty for plain text.
        origin: The place from which the prompt comes, such as "questions.jsonl, line 12". It does not count when two
            prompts are compared.
        ids: The token ids of the prompt, once a model has encoded it; empty before. They do not count when two prompts
            are compared.
    """

    id: str
    text: str
    split: str
    task: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    held_out: bool = False
    messages: Messages = ()
    origin: str = field(default="", compare=False)
    ids: tuple[int, ...] = field(default=(), compare=False, repr=False)

    @property
    def content(self) -> Any:
        """The argument for `decode` and `Model.encode`: the text, or the conversation as dictionaries."""
        return [{"role": role, "content": content} for role, content in self.messages] if self.messages else self.text

    @property
    def place(self) -> str:
        """The words by which messages name the prompt: its origin and the beginning of its text."""
        shown = self.text if len(self.text) <= CHARACTERS_SHOWN else f"{self.text[:CHARACTERS_SHOWN]}..."
        return f"{self.origin or self.id} ({shown!r})"


def task_prompts(tasks: Sequence[Task], counts: Mapping[str, int], seed: int) -> list[Prompt]:
    """Draw prompts from tasks that generate their problems.

    Args:
        tasks: The tasks, as `registry.build_task` builds them.
        counts: The number of prompts of each split. The tasks share it out as evenly as possible.
        seed: The seed of the streams of problems.

    Returns:
        The prompts.
    """
    prompts = []
    for place, task in enumerate(tasks):
        for split, count in counts.items():
            share = count // len(tasks) + (place < count % len(tasks))
            for problem in itertools.islice(problems(task, split, seed), share):
                prompts.append(Prompt(problem.id, problem.prompt, split, task.name, problem.facts, problem.held_out))
    return prompts


# ---- records to prompts


def record_prompts(
    records: Records, prompt_field: str, answer_field: str | None, task: str, checker: Checker
) -> list[Prompt]:
    """The different prompts of a file, in its order and without a split; what cannot be used is counted and logged.

    A prompt is not judged, and counted, where its record has no answer, the checker can do nothing with the answer, or
    the same prompt stands elsewhere with an answer that means something else.

    Args:
        records: The records of a file or data set.
        prompt_field: Name of the field with the prompt: a text, or a list of messages with role and content.
        answer_field: Name of the field with the right answer; None where nothing judges.
        task: Name of the checker.
        checker: Makes facts out of answers.

    Raises:
        UserError: No record holds a prompt, or none has the answer field.
    """
    if answer_field is not None and records.rows and not any(answer_field in row.fields for row in records.rows):
        raise UserError(_no_field("data.answer_field", answer_field, records))
    complaints = list(records.complaints)
    unjudged: list[str] = []
    repeated: list[str] = []
    conflicts: list[str] = []
    prompts: dict[str, Prompt] = {}
    contested: set[str] = set()
    for row in records.rows:
        try:
            prompt, reason = _prompt_of(records, row, prompt_field, answer_field, task, checker)
        except ValueError as error:
            complaints.append(f"{row.place}: {error}")
            continue
        earlier = prompts.get(prompt.id)
        if earlier is not None:
            repeated.append(row.place)
        if earlier is None or not earlier.facts:
            prompts[prompt.id] = prompt if earlier is None else replace(earlier, task=prompt.task, facts=prompt.facts)
        elif prompt.facts and prompt.facts != earlier.facts:
            conflicts.append(f"{earlier.origin.removeprefix(f'{records.name}, ')} and {row.place}")
            contested.add(prompt.id)
        if reason:
            unjudged.append(f"{row.place}: {reason}")
    for identifier in contested:
        prompts[identifier] = replace(prompts[identifier], task=None, facts={})
    if not prompts:
        fields = records.columns()
        near = suggest(prompt_field, fields) if prompt_field not in fields else ""
        raise UserError(
            f"{records.source}: none of the {_counted(len(complaints), records.unit)} holds a prompt: "
            f"{_listed(complaints)}{near} (data.prompt_field)"
        )
    for lines, fate in (
        (complaints, f"skipped, {len(prompts)} prompts left"),
        (unjudged, "without an answer that can be judged; their prompts are decoded and count in no accuracy"),
        (repeated, "with a prompt that stands before; each prompt is used once"),
        (conflicts, "repeated with different answers; their prompts are decoded and count in no accuracy"),
    ):
        if lines:
            log.warning("%s %s in %s: %s", _counted(len(lines), records.unit), fate, records.source, _listed(lines))
    return list(prompts.values())


def _no_field(key: str, name: str, records: Records) -> str:
    fields = records.columns()
    near = suggest(name, fields)
    columns = ", ".join(fields)
    return f"{key}={name!r}: no {records.unit} of {records.source} has this field{near}; the fields are {columns}"


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 else f"{count} {unit[:-1] + 'ies' if unit.endswith('y') else unit + 's'}"


def _listed(lines: Sequence[str]) -> str:
    return "; ".join(lines[:LINES_SHOWN]) + ("; ..." if len(lines) > LINES_SHOWN else "")


def _prompt_of(
    records: Records, row: Record, prompt_field: str, answer_field: str | None, task: str, checker: Checker
) -> tuple[Prompt, str]:
    """A prompt, and why it is not judged although the run has an answer field.

    Raises:
        ValueError: The record holds no prompt, or an answer that the checker refuses.
    """
    text, messages = _content_of(row.fields, prompt_field)
    identifier = hashlib.sha256(json.dumps(messages).encode() if messages else text.strip().encode()).hexdigest()[:16]
    facts: dict[str, Any] = {}
    reason = ""
    if answer_field is not None:
        answer = _answer_of(row.fields.get(answer_field), answer_field)
        if answer is None:
            reason = f"no answer in the field {answer_field!r}"
        else:
            facts = checker.facts(text, answer)
            reason = (
                ""
                if facts
                else f"the answer {answer[-CHARACTERS_SHOWN:]!r} has no value that the task {task!r} can judge"
            )
    prompt = Prompt(
        identifier, text, "", task if facts else None, facts, messages=messages, origin=f"{records.name}, {row.place}"
    )
    return prompt, reason


def _content_of(fields: Mapping[str, Any], name: str) -> tuple[str, Messages]:
    """The text of a prompt and its turns. One message of the user alone is the same as its text, and has no turns.

    Raises:
        ValueError: The field is missing, or neither a text nor messages.
    """
    value = fields.get(name)
    if isinstance(value, list) and value and all(isinstance(message, dict) and "role" in message for message in value):
        messages = _messages_of(value)
        if [role for role, _ in messages] == ["user"]:
            return messages[0][1], ()
        return "\n".join(f"{role}: {content}" for role, content in messages), messages
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no text in the field {name!r} (its fields: {', '.join(fields) or 'none'})")
    _check_characters(value, name)
    return value, ()


def _messages_of(value: Sequence[dict[str, Any]]) -> Messages:
    """Turns up to the user's last one; what the assistant says after it is an answer and no part of the prompt.

    Raises:
        ValueError: A turn lacks its role or its content, or none is the user's.
    """
    for number, message in enumerate(value, 1):
        if not isinstance(message["role"], str) or not isinstance(message.get("content"), str):
            raise ValueError(f"message {number} has no role or no content that is text")
        _check_characters(message["role"] + message["content"], f"message {number}")
    turns = [(message["role"], message["content"]) for message in value]
    while turns and turns[-1][0] == "assistant":
        turns.pop()
    if not any(role == "user" and content.strip() for role, content in turns):
        raise ValueError("no message of the user holds any text")
    return tuple(turns)


def _check_characters(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character ({text[error.start]!a}) in the field {name!r}") from None


def _answer_of(value: Any, name: str) -> str | None:
    """Return an answer as text, with numbers and objects in JSON, or None where the record has no answer."""
    if isinstance(value, str):
        _check_characters(value, name)
        return value if value.strip() else None
    if isinstance(value, Decimal):  # of a Parquet file
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float | dict):
        return None
    return json.dumps(value, default=str)


# ---- prompts to splits


def deal(
    common: Sequence[Prompt], own: Mapping[str, Sequence[Prompt]], counts: Mapping[str, int], seed: int
) -> list[Prompt]:
    """Prompts with their splits, each in one.

    Args:
        common: Prompts that are dealt out to the splits without prompts of their own.
        own: Split -> all prompts of a file that holds this split alone. Whatever stands there is left out of `common`,
            also where the counts take a part of the file only; of a prompt that two such files hold, the test split
            keeps its one.
        counts: Split -> how many prompts it gets, or fewer in the same proportions.
        seed: The seed of the shuffling; the order of the files has no part in it.

    Raises:
        UserError: Too few prompts.
    """
    taken: dict[str, str] = {}  # id -> split
    pools: dict[str, list[Prompt]] = {}
    for split in ("test", "validation"):
        pools[split] = _left(own.get(split, ()), taken, f"data.{split}_path")
        taken |= {prompt.id: split for prompt in pools[split]}
    common = _left(common, taken, "data.path")
    shared = [split for split in SPLITS if split not in own]
    wanted = [split for split in shared if counts[split]]
    if len(common) < len(wanted):
        raise UserError(
            f"{len(common)} different prompts are too few for {' and '.join(wanted)}: expected at least {len(wanted)}"
        )
    dealt = _shuffled(common, seed)
    sizes = _scaled({split: counts[split] for split in shared}, len(common))
    prompts: list[Prompt] = []
    for split in SPLITS:
        if split in own:
            prompts += _sample(pools[split], split, counts[split], seed)
        else:
            prompts += [replace(prompt, split=split) for prompt in dealt[: sizes[split]]]
            dealt = dealt[sizes[split] :]
    return prompts


def _left(prompts: Sequence[Prompt], taken: Mapping[str, str], key: str) -> list[Prompt]:
    """Return the prompts that no other file claims for its split, and log the number of the others."""
    left = [prompt for prompt in prompts if prompt.id not in taken]
    if len(left) < len(prompts):
        others = sorted({f"data.{taken[prompt.id]}_path" for prompt in prompts if prompt.id in taken})
        log.warning(
            "%d of the %d prompts of %s stand in %s too, and are used there only",
            len(prompts) - len(left),
            len(prompts),
            key,
            " or ".join(others),
        )
    return left


def _shuffled(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    ordered = sorted(prompts, key=lambda prompt: prompt.id)
    random.Random(seed).shuffle(ordered)
    return ordered


def _sample(prompts: Sequence[Prompt], split: str, count: int, seed: int) -> list[Prompt]:
    if not prompts:
        raise UserError(f"data.{split}_path: no prompt is left for the {split} split")
    if len(prompts) < count:
        log.warning("%d %s prompts asked for, %d available: using them all", count, split, len(prompts))
    return [replace(prompt, split=split) for prompt in _shuffled(prompts, seed)[:count]]


def _scaled(counts: Mapping[str, int], available: int) -> dict[str, int]:
    """Return the counts, or scale them down where fewer prompts are available.

    Every split that is to have prompts keeps at least one. What rounding leaves over goes to the first of them, which
    is the training split unless that one is to be empty.
    """
    asked = sum(counts.values())
    if asked <= available:
        return dict(counts)
    scaled = {split: max(min(1, count), count * available // asked) for split, count in counts.items()}
    while sum(scaled.values()) > available:
        scaled[max(scaled, key=lambda split: scaled[split])] -= 1
    first = next(split for split, count in counts.items() if count)
    scaled[first] += available - sum(scaled.values())
    log.warning(
        "%d prompts asked for, %d available: using %s",
        asked,
        available,
        ", ".join(f"{count} {split}" for split, count in scaled.items()),
    )
    return scaled


class Encoder(Protocol):
    """The part of a model that this module uses."""

    def encode(self, prompt: Any) -> list[int]:
        """Return the token ids of a text, or of a conversation as dictionaries with role and content."""


def encoded(model: Encoder, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the token ids of prompts. The model encodes only those prompts that do not carry theirs.

    Args:
        model: The model that encodes the prompts.
        prompts: The prompts.
    """
    return [list(prompt.ids) or model.encode(prompt.content) for prompt in prompts]


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Return 16 hex digits that identify the ids, texts and splits of the prompts, in order."""
    joined = json.dumps([(prompt.id, prompt.text, prompt.split) for prompt in prompts])
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def facts_digest(prompts: Sequence[Prompt]) -> str:
    """Return 16 hex digits that identify by what the answers to the prompts are checked, in order."""
    joined = json.dumps([(prompt.task, prompt.facts) for prompt in prompts], sort_keys=True)
    return hashlib.sha256(joined.encode()).hexdigest()[:16]
