from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from learn2pd.data.tasks.slots import SlotsTask, parse_record
from learn2pd.embedded.tasks.json_records import LAYOUTS

REQUESTS = Path(__file__).parents[2] / "data" / "requests.jsonl"
TASK = SlotsTask()
PROMPT = "Book a table for two at Luigi's in Rome, Rome for two"
RECORD = {"intent": "BookTable", "party_size_number": "two", "restaurant_name": "Luigi's", "city": ["Rome", "Rome"]}
FACTS = {"record": RECORD}
COUNTS = {"valid", "intent", "slots_right", "slots_given", "slots_expected"}


def entries():
    """The entries of the file of requests."""
    return [json.loads(line) for line in REQUESTS.read_text(encoding="utf-8").splitlines()]


def shuffled(record, seed):
    """The record with its keys in another order."""
    return {key: record[key] for key in random.Random(seed).sample(list(record), len(record))}


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), {"indent": 7}, {"ensure_ascii": False}], ids=str)
def test_an_equal_record_is_right_in_any_order_and_layout(layout):
    for seed, entry in enumerate(entries()):
        facts = TASK.facts(entry["prompt"], entry["answer"])
        text = json.dumps(shuffled(facts["record"], seed), **layout)
        verdict = TASK.check(facts, f"\n {text} \n")
        slots = len(facts["record"]) - 1
        assert verdict.correct, verdict
        assert verdict.counts == {
            "valid": 1,
            "intent": 1,
            "slots_right": slots,
            "slots_given": slots,
            "slots_expected": slots,
        }


@pytest.mark.parametrize(
    ("change", "right", "given_slots", "intent"),
    [
        ({"intent": "RateBook"}, 3, 3, 0),
        ({"party_size_number": "Two"}, 2, 3, 1),
        ({"city": "Rome"}, 2, 3, 1),
        ({"city": ["Rome"]}, 2, 3, 1),
        ({"state": "Rome"}, 3, 4, 1),
        ({"city": None}, 2, 2, 1),
        ({"city": None, "town": ["Rome", "Rome"]}, 2, 3, 1),
    ],
    ids=["intent", "letter case", "no list", "shorter list", "one more", "one less", "another name"],
)
def test_a_record_that_differs_is_wrong_and_counted_by_slots(change, right, given_slots, intent):
    changed = {key: value for key, value in (RECORD | change).items() if value is not None}
    verdict = TASK.check(FACTS, json.dumps(changed))
    assert not verdict.correct
    assert verdict.reason
    assert verdict.counts == {
        "valid": 1,
        "intent": intent,
        "slots_right": right,
        "slots_given": given_slots,
        "slots_expected": 3,
    }


NOT_RECORDS = {
    "": "Expecting value",
    "[]": "object",
    '"intent"': "object",
    "null": "object",
    "{}": "intent",
    '{"city": "Rome"}': "intent",
    '{"intent": null}': "intent",
    '{"intent": ["a"]}': "intent",
    '{"intent": "a", "city": "x", "city": "x"}': "'city' stands twice",
    '{"intent": "a", "intent": "a"}': "'intent' stands twice",
    '{"intent": "a", "city": 1}': "'city'",
    '{"intent": "a", "city": true}': "'city'",
    '{"intent": "a", "city": null}': "'city'",
    '{"intent": "a", "city": NaN}': "'city'",
    '{"intent": "a", "city": {"city": "Rome"}}': "'city'",
    '{"intent": "a", "city": [["Rome"]]}': "'city'",
    '{"intent": "a", "city": ["Rome", 1]}': "'city'",
    '{"intent": "a", "city": {"x": 1, "x": 2}}': "'x' stands twice",
    '{"intent": "a"} and more': "Extra data",
    '{"intent": "a", "city": "Rome"': "delimiter",
    '{"intent": "a", "city": ' + "[" * 100_000: "nested too deeply",
    '{"intent": "a", "city": ' + '{"a":' * 100_000: "nested too deeply",
    '{"intent": "a", "city": ' + "1" * 5000 + "}": "integer string",
}


@pytest.mark.parametrize("text", NOT_RECORDS, ids=lambda text: text[:40])
def test_what_is_no_record_is_refused_in_one_line_and_never_right(text):
    with pytest.raises(ValueError, match=NOT_RECORDS[text]) as error:
        parse_record(text)
    assert "\n" not in str(error.value)
    verdict = TASK.check(FACTS, text)
    assert not verdict.correct
    assert verdict.counts == {"valid": 0, "intent": 0, "slots_right": 0, "slots_given": 0, "slots_expected": 3}
    with pytest.raises(ValueError, match=NOT_RECORDS[text]):
        TASK.facts(PROMPT, text)


@pytest.mark.parametrize("value", ["Milan", "rome", ["Rome", "Milan"], "Rome "], ids=str)
def test_a_value_that_does_not_stand_in_the_request_is_refused_by_the_name_of_its_slot(value):
    with pytest.raises(ValueError, match="'city' does not stand in the request"):
        TASK.facts("a table in Rome", json.dumps({"intent": "a", "city": value}))


KEYS = st.sampled_from(["intent", "city", "\ud800"])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.fixed_dictionaries({"intent": st.text(max_size=5)}, optional={"city": JSON_VALUES, "\ud800": JSON_VALUES})


@given(st.text(max_size=60) | JSON_VALUES.map(json.dumps) | RECORDS.map(json.dumps))
@example('{"intent": "\\ud800", "\\ud800": "\\udfff"}')
@example('{"intent": "\ud800", "city": ["\udfff"]}')
@example('{"intent": "a", "city": "' + "Rome " * 200_000 + '"}')
@example('{"intent": "a"' + "".join(f', "s{number}": "x"' for number in range(50_000)) + ', "s49999": "y"}')
@example('{"intent": "a", "city": ' + "[" * 5000 + "]" * 5000 + "}")
@example("\0")
def test_any_text_gets_a_verdict_and_only_a_record_becomes_facts(text):
    verdict = TASK.check(FACTS, text)
    assert verdict.counts.keys() == COUNTS
    assert verdict.counts["slots_right"] <= min(verdict.counts["slots_given"], verdict.counts["slots_expected"])
    assert not verdict.correct
    try:
        facts = TASK.facts(text, text)
    except ValueError:
        return
    assert TASK.check(facts, text).correct


@given(st.data())
def test_a_damaged_answer_gets_a_verdict(data):
    entry = data.draw(st.sampled_from(ENTRIES))
    answer = entry["answer"]
    start = data.draw(st.integers(0, len(answer)))
    stop = data.draw(st.integers(start, len(answer)))
    text = answer[:start] + data.draw(st.text(max_size=4)) + answer[stop:]
    facts = TASK.facts(entry["prompt"], answer)
    verdict = TASK.check(facts, text)
    assert verdict.correct == (verdict.reason == "")
    assert verdict.correct <= (verdict.counts["slots_right"] == verdict.counts["slots_expected"])


ENTRIES = entries()[:20]


def test_the_scores_of_a_few_answers_worked_out_by_hand():
    """Of four answers two are right, one has two of three slots and another one too, and one is no JSON."""
    counts = [
        TASK.check(FACTS, json.dumps(RECORD)).counts,
        TASK.check(FACTS, json.dumps(shuffled(RECORD, 1))).counts,
        TASK.check(FACTS, json.dumps(RECORD | {"intent": "b", "city": "Rome", "state": "Rome"})).counts,
        TASK.check(FACTS, "Rome").counts,
    ]
    right, given_slots, expected = 3 + 3 + 2, 3 + 3 + 4, 4 * 3
    slot_f1 = pytest.approx(2 * right / (given_slots + expected))
    assert TASK.scores(counts) == {"valid JSON": 0.75, "intent": 0.5, "slot F1": slot_f1}


def test_the_scores_of_records_without_slots():
    facts = {"record": {"intent": "a"}}
    texts = ('{"intent": "a"}', "{", '{"intent": "a", "s": "x"}')
    right, wrong, more = (TASK.check(facts, text).counts for text in texts)
    assert TASK.scores([right]) == {"valid JSON": 1.0, "intent": 1.0, "slot F1": 1.0}
    assert TASK.scores([wrong]) == {"valid JSON": 0.0, "intent": 0.0, "slot F1": 1.0}
    assert TASK.scores([more])["slot F1"] == 0.0


def test_the_requests_of_the_repository_are_all_valid_and_different():
    requests = entries()
    assert len(requests) == 420
    assert all(set(entry) == {"prompt", "answer"} for entry in requests)
    records = [TASK.facts(entry["prompt"], entry["answer"])["record"] for entry in requests]
    words = {" ".join(entry["prompt"].lower().split()) for entry in requests}
    assert len(words) == 420
    assert len({record["intent"] for record in records}) > 1
    assert all(value.strip() for record in records for value in record.values() if isinstance(value, str))
