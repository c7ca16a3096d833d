"""Spoken requests as JSON records: the checker, its scores, and how they come into the tables of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.data.reading import read_records
from learn2pd.data.tasks import ScoringChecker
from learn2pd.data.tasks.final_number import FinalNumberTask
from learn2pd.data.tasks.slots import SlotsTask
from learn2pd.evaluation.compare import score_rows
from learn2pd.statistics.bootstrap import Bootstrap
from tests.evaluation.synthetic import outcome, table_of

REQUESTS = Path(__file__).parents[2] / "data" / "requests.jsonl"
RECORD = {"intent": "PlayMusic", "artist": "Sade", "track": "Smooth Operator", "service": ["a", "b"]}
FACTS = {"record": RECORD}


def test_every_shipped_request_is_judged_right_by_its_own_record():
    task = SlotsTask()
    rows = read_records(REQUESTS).rows
    assert len(rows) == 420
    for row in rows:
        facts = task.facts(row.fields["prompt"], row.fields["answer"])
        verdict = task.check(facts, row.fields["answer"])
        assert verdict.correct
        assert verdict.counts["slots_right"] == verdict.counts["slots_given"] == verdict.counts["slots_expected"]


@pytest.mark.parametrize("layout", [{"separators": (",", ":")}, {}, {"indent": 2}])
def test_order_and_layout_are_free(layout):
    reversed_record = dict(reversed(RECORD.items()))
    assert SlotsTask().check(FACTS, f"\n{json.dumps(reversed_record, **layout)} ").correct


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        ({"intent": "GetWeather"}, {"valid": 1, "intent": 0, "slots_right": 3, "slots_given": 3}),
        ({"artist": "sade"}, {"valid": 1, "intent": 1, "slots_right": 2, "slots_given": 3}),
        ({"service": ["b", "a"]}, {"valid": 1, "intent": 1, "slots_right": 2, "slots_given": 3}),
        ({"year": "1984"}, {"valid": 1, "intent": 1, "slots_right": 3, "slots_given": 4}),
    ],
)
def test_a_record_that_differs_is_wrong_and_counted_by_how_much(change, counts):
    verdict = SlotsTask().check(FACTS, json.dumps(RECORD | change))
    assert not verdict.correct
    assert verdict.counts == counts | {"slots_expected": 3}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        json.dumps(RECORD)[:-1],
        '{"intent": "a", "intent": "b"}',
        "[" * 100_000,
        '{"intent": 1}',
    ],
)
def test_what_is_no_record_has_no_right_slot(text):
    verdict = SlotsTask().check(FACTS, text)
    assert not verdict.correct
    assert verdict.counts == {"valid": 0, "intent": 0, "slots_right": 0, "slots_given": 0, "slots_expected": 3}


@given(
    text=st.text(max_size=60) | st.dictionaries(st.text(max_size=3), st.text(max_size=3) | st.none()).map(json.dumps)
)
def test_judging_never_raises(text):
    assert not SlotsTask().check(FACTS, text).correct


COUNTS = [
    {"valid": 1, "intent": 1, "slots_right": 2, "slots_given": 3, "slots_expected": 2},
    {"valid": 0, "intent": 0, "slots_right": 0, "slots_given": 0, "slots_expected": 5},
]


def test_slot_f1_is_micro_averaged():
    scores = SlotsTask().scores(COUNTS)
    assert scores == pytest.approx({"valid JSON": 0.5, "intent": 0.5, "slot F1": 2 * 2 / (3 + 7)})
    assert SlotsTask().scores([dict.fromkeys(COUNTS[0], 0)])["slot F1"] == 1


def test_only_a_checker_with_scores_is_one():
    assert isinstance(SlotsTask(), ScoringChecker)
    assert not isinstance(FinalNumberTask(), ScoringChecker)


def scored(method, counts, task="slots"):
    """An outcome whose answers have these counts of slots."""
    made = outcome(method, "fixed", forwards=[10] * len(counts), task=task)
    made.counts.extend(counts)
    return made


def test_scores_of_every_method_stand_in_a_table_with_their_intervals():
    outcomes = [
        scored("vanilla", COUNTS * 20),
        scored("quick", COUNTS[:1] * 40),
        scored("other", [{}] * 40, task="prompts"),
    ]
    rows = score_rows(outcomes, {"slots": SlotsTask()}, Bootstrap(200, 0))
    assert [(row["method"], row["prompts"], row["slot F1"]) for row in rows] == [
        ("vanilla", 40, 0.4),
        ("quick", 40, 0.8),
    ]
    low, high = rows[0]["valid JSON_interval"]
    assert low < 0.5 < high
    assert rows[1]["valid JSON_interval"] == [1, 1]
    table = table_of("scores-0", scores=json.loads(json.dumps(rows)))
    assert "| task | stop | method | prompts | valid JSON % | intent % | slot F1 % |" in table
    assert "| slots | eot | quick | 40 | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] | 80.0 [80.0, 80.0] |" in table


def test_the_bootstrap_of_scores_is_that_of_the_single_resamples():
    """The slow way: every resample drawn and scored on its own."""
    counts = [
        {name: int(value) for name, value in zip(COUNTS[0], row, strict=True)}
        for row in np.random.default_rng(0).integers(0, 4, (9, 5))
    ]
    row = score_rows([scored("v", counts)], {"slots": SlotsTask()}, Bootstrap(50, 3))[0]
    draws = np.random.default_rng(3).integers(0, 9, (50, 9))
    single = [SlotsTask().scores([counts[place] for place in draw])["slot F1"] for draw in draws]
    assert row["slot F1_interval"] == pytest.approx(list(np.quantile(single, (0.025, 0.975))), abs=1e-4)


def test_without_scores_there_is_no_table():
    assert score_rows([scored("v", [{}] * 3)], {"slots": SlotsTask()}, Bootstrap(20, 0)) == []
    assert table_of("scores-0", scores=[]) == ""
