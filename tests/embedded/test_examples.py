from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from learn2pd.data.reading import read_records
from learn2pd.data.tasks.slots import SlotsTask, parse_record, slot_outside
from learn2pd.embedded.examples import ProblemExamples, RequestExamples, cut, write_record
from learn2pd.embedded.tasks.json_records import LAYOUTS
from learn2pd.registry import GENERATED_TASKS, build_task
from tests.embedded.helpers import REQUESTS

TASK = SlotsTask()


def requests():
    """Every request of the repository with its record."""
    entries = [row.fields for row in read_records(REQUESTS).rows]
    return [(entry["prompt"], parse_record(entry["answer"])) for entry in entries]


ALL = requests()
TRAIN, VALIDATION = ALL[:300], ALL[300:]


def source(swap_share=1.0, invent_share=0.5, train=TRAIN):
    """Requests that are varied in every value by default."""
    return RequestExamples(train, VALIDATION, swap_share, invent_share)


WORDS = st.text(st.sampled_from("ab ,.'é日"), max_size=8)


@given(WORDS, st.dictionaries(st.sampled_from("stu"), WORDS | st.lists(WORDS, max_size=2), max_size=3))
@example("a b", {"s": "a", "t": "b"})
@example("a", {"s": "a"})
@example("", {"s": ""})
@example(" ", {"s": " "})
def test_the_pieces_of_a_request_make_it_up_and_are_its_values(prompt, values):
    pieces = cut(prompt, {"intent": "i"} | values)
    if not pieces:
        return
    assert "".join(text for text, _ in pieces) == prompt
    assert {slot: text for text, slot in pieces if slot is not None} == values
    assert all(value.strip() for value in values.values())


@given(st.lists(st.sampled_from(["in", "at", "zoo", "new", "york"]), min_size=1, max_size=6, unique=True), st.data())
def test_a_request_whose_values_are_whole_words_is_always_cut(words, data):
    picked = data.draw(st.lists(st.sampled_from(words), unique=True))
    prompt = " ".join(words)
    pieces = cut(prompt, {"intent": "i"} | {f"slot_{word}": word for word in picked})
    assert [text for text, slot in pieces if slot is not None] == [word for word in words if word in picked]


@pytest.mark.parametrize(
    ("prompt", "values"),
    [
        ("two and two", {"s": "two"}),
        ("a new york", {"s": "new york", "t": "york"}),
        ("category", {"s": "cat"}),
        ("a cat", {"s": "dog"}),
        ("a  b", {"s": " "}),
        ("a cat", {"s": ["cat"]}),
    ],
    ids=["twice", "overlapping", "part of a word", "not there", "blank", "a list"],
)
def test_a_request_that_cannot_be_varied_safely_is_not_cut(prompt, values):
    assert cut(prompt, {"intent": "i"} | values) == ()


def test_most_requests_of_the_repository_are_cut():
    assert sum(bool(cut(*request)) for request in ALL) > 0.9 * len(ALL)


@pytest.mark.parametrize("invent_share", [0.0, 1.0])
def test_a_swapped_example_is_a_request_with_its_record(invent_share, monkeypatch):
    """Invented values too: every value stands in the prompt, letter by letter, and the checker takes the answer."""
    monkeypatch.setattr(RequestExamples, "MANY_VALUES", 5)
    written = dict(TRAIN)
    swapped = 0
    for drawn in source(invent_share=invent_share).draw("train", 1500, random.Random(1)):
        facts = TASK.facts(drawn.prompt, drawn.answer)  # raises where a value does not stand in the prompt
        assert TASK.check(facts, drawn.answer).correct
        assert slot_outside(drawn.prompt, facts["record"]) is None
        swapped += drawn.prompt not in written
        if drawn.prompt in written:
            assert set(facts["record"]) == set(written[drawn.prompt])
    assert swapped > 1000


def test_values_are_swapped_within_an_intent_and_a_slot():
    known = {}
    for _, record in TRAIN:
        for slot, value in record.items():
            known.setdefault((record["intent"], slot), set()).add(json.dumps(value))
    for drawn in source(invent_share=0.0).draw("train", 800, random.Random(2)):
        record = parse_record(drawn.answer)
        assert all(json.dumps(value) in known[record["intent"], slot] for slot, value in record.items())


def test_invented_values_are_made_of_known_words_and_of_places_with_many_values_alone(monkeypatch):
    monkeypatch.setattr(RequestExamples, "MANY_VALUES", 30)
    examples = source(invent_share=1.0)
    invented = 0
    for drawn in examples.draw("train", 800, random.Random(3)):
        record = parse_record(drawn.answer)
        for slot, value in record.items():
            values = examples.values.get((record["intent"], slot), [])
            if slot == "intent" or value in values or not isinstance(value, str) or not values:
                continue
            if len(values) >= 30:
                invented += 1
                assert set(value.split()) <= {word for known in values for word in known.split()}
            else:
                assert any(record["intent"] == other["intent"] and other.get(slot) == value for _, other in TRAIN)
    assert invented > 100


def test_no_share_leaves_every_request_as_it_was_written():
    written = dict(TRAIN)
    for drawn in source(swap_share=0.0).draw("train", 500, random.Random(4)):
        assert parse_record(drawn.answer) == written[drawn.prompt]


def test_validation_examples_are_never_varied():
    written = dict(VALIDATION)
    for drawn in source().draw("validation", 500, random.Random(5)):
        assert parse_record(drawn.answer) == written[drawn.prompt]


def test_no_validation_value_reaches_training():
    """Values that only validation requests have are not swapped in."""
    values = {value for known in source().values.values() for value in known}
    train = {value for _, record in TRAIN for value in record.values() if isinstance(value, str)}
    assert values <= train


def test_the_order_of_keys_and_the_layout_vary_and_say_the_same():
    record = {"intent": "GetWeather", "city": "Łódź", "timeRange": 'now, "today"'}
    written = {write_record(record, random.Random(seed)) for seed in range(200)}
    assert len(written) == len(LAYOUTS) * 6
    assert all(parse_record(text) == record for text in written)
    assert {tuple(parse_record(text)) for text in written} == set(itertools.permutations(record))
    assert all("Łódź" in text for text in written)  # letters stay letters, so that a value can be copied


SOURCES = {"requests": source(), "problems": ProblemExamples([build_task(name) for name in GENERATED_TASKS])}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_equal_generators_give_equal_examples(split, name):
    first, again, other = (SOURCES[name].draw(split, 30, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_problems_come_from_the_tasks_in_equal_shares(count):
    """Answers of `math` hold a number after four hashes, those of `code` begin a function, and the others are JSON."""
    drawn = SOURCES["problems"].draw("train", count, random.Random(6))
    tasks = ["math" if "####" in one.answer else "code" if one.answer.startswith("def ") else "json" for one in drawn]
    assert len(drawn) == count
    counts = [tasks.count(name) for name in GENERATED_TASKS]
    assert max(counts) - min(counts) <= 1


def test_the_corpus_is_that_of_the_training_requests_and_always_the_same():
    texts = list(source().corpus())
    assert texts == list(source(0.1, 0.1).corpus())
    assert texts[::2] == [prompt for prompt, _ in TRAIN]
    assert [parse_record(text) for text in texts[1::2]] == [record for _, record in TRAIN]


def test_a_task_that_is_named_twice_has_two_shares_and_one_part_of_the_tokenizers_text():
    math, code = build_task("math"), build_task("code")
    once = ProblemExamples([math, code])
    twice = ProblemExamples([math, code, code])
    drawn = twice.draw("train", 30, random.Random(0))
    assert len({example.prompt for example in drawn}) > 25  # the two shares are not the same problems
    assert sum("def " in example.answer for example in drawn) == 20
    assert list(twice.corpus()) == list(once.corpus())
