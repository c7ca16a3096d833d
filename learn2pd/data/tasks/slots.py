"""Task `slots`: the model turns a spoken request into a flat JSON record, as in the SNIPS benchmark.

The record holds an intent and the slots that the request fills.

Two records are equal if they have the same keys with the same values, whatever the order of the keys and the layout.
Beside the verdict the checker reports how near an answer comes: whether it is JSON, whether the intent is right, and
slots for slot F1 (a slot counts as right when its name and its value are).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learn2pd.data.tasks.base import Verdict

INTENT = "intent"
Record = dict[str, Any]


def parse_record(text: str) -> Record:
    """The record of a JSON text.

    Raises:
        ValueError: It is not JSON, not an object, has a key twice, no intent, or a value that is neither a text nor a
            list of texts.
    """
    try:
        record = json.loads(text, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    if not isinstance(record.get(INTENT), str):
        raise ValueError(f"the record has no {INTENT!r}")
    for slot, value in record.items():
        if not all(isinstance(entry, str) for entry in _entries(value)):
            raise ValueError(f"the value of {slot!r} is neither a text nor a list of texts")
    return record


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> Record:
    """A JSON object out of its keys and values.

    Raises:
        ValueError: A key stands twice.
    """
    record: Record = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"the key {key!r} stands twice")
        record[key] = value
    return record


def _entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def slot_outside(prompt: str, record: Record) -> str | None:
    """Return the first slot whose value does not stand in the request, or None.

    Args:
        prompt: The request.
        record: The record.
    """
    for slot, value in record.items():
        if slot != INTENT and any(entry not in prompt for entry in _entries(value)):
            return slot
    return None


class SlotsTask:
    """The checker of records; it has no generator, since people wrote the requests."""

    name = "slots"

    def facts(self, prompt: str, answer: str) -> dict[str, Any]:
        """Extract the record that `check` needs from a reference answer.

        Args:
            prompt: The request.
            answer: The reference answer.

        Returns:
            The record.

        Raises:
            ValueError: The answer is not a record, or a slot's value does not stand in the request.
        """
        record = parse_record(answer)
        outside = slot_outside(prompt, record)
        if outside is not None:
            raise ValueError(f"the value of the slot {outside!r} does not stand in the request")
        return {"record": record}

    def check(self, facts: dict[str, Any], text: str) -> Verdict:
        """Judge any text. The method never raises because of a model's output."""
        expected = _pairs(facts["record"])
        try:
            record = parse_record(text.strip())
        except ValueError as error:
            return Verdict(
                False,
                str(error),
                {"valid": 0, "intent": 0, "slots_right": 0, "slots_given": 0, "slots_expected": len(expected)},
            )
        given = _pairs(record)
        counts = {
            "valid": 1,
            "intent": int(record[INTENT] == facts["record"][INTENT]),
            "slots_right": len(given & expected),
            "slots_given": len(given),
            "slots_expected": len(expected),
        }
        if record == facts["record"]:
            return Verdict(True, "", counts)
        return Verdict(False, "the record differs from the facts", counts)

    def scores(self, counts: Sequence[dict[str, int]]) -> dict[str, float]:
        """The shares of many answers, out of the counts of their verdicts."""
        totals = {name: np.array([float(sum(entry[name] for entry in counts))]) for name in counts[0]}
        return {name: float(values[0]) for name, values in self.shares(totals, len(counts)).items()}

    def shares(self, totals: Mapping[str, NDArray[np.float64]], answers: int) -> dict[str, NDArray[np.float64]]:
        """Shares over many answers; slot F1 is micro-averaged, and 1 where neither side has a slot.

        Args:
            totals: The sums of the counts of the verdicts, by name; each an array with a sum for each resample.
            answers: The number of verdicts in a sum.
        """
        both = totals["slots_given"] + totals["slots_expected"]
        f1 = np.divide(2 * totals["slots_right"], both, out=np.ones_like(both), where=both > 0)
        return {"valid JSON": totals["valid"] / answers, "intent": totals["intent"] / answers, "slot F1": f1}


def _pairs(record: Record) -> set[tuple[str, str]]:
    """Every slot with its value; a list of values counts as one."""
    return {(slot, json.dumps(value)) for slot, value in record.items() if slot != INTENT}
