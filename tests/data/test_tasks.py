from __future__ import annotations

import functools
import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.data.sandbox import SandboxRefused
from learn2pd.data.tasks import SPLITS, problems
from learn2pd.data.tasks.base import is_held_out
from learn2pd.embedded.tasks.json_records import LAYOUTS
from learn2pd.registry import GENERATED_TASKS, build_task

DRAWN = 200


@functools.cache
def drawn(name, split="train", seed=0, count=DRAWN):
    """The first problems of a task's split."""
    return list(itertools.islice(problems(build_task(name), split, seed), count))


def styled(name, style, count=60):
    """Problems of `math` or `json` whose answer satisfies `style`."""
    return list(
        itertools.islice((problem for problem in problems(build_task(name), "train", 1) if style(problem)), count)
    )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["math", "json"])
def test_every_drawn_answer_is_accepted(name, split):
    task = build_task(name)
    for problem in drawn(name, split):
        assert task.check(problem.facts, problem.answer).correct, problem
        assert task.check(problem.facts, f"\n{problem.answer}\n ").correct, problem


def test_every_drawn_function_is_accepted():
    """Also where the templates and the meanings, written apart, might differ."""
    task = build_task("code", run_generated_code=True)
    for problem in drawn("code", count=50):
        verdict = task.check(problem.facts, problem.answer)
        assert verdict.correct, (problem, verdict)


def test_a_wrong_function_is_rejected():
    task = build_task("code", run_generated_code=True)
    for problem in drawn("code", count=10):
        parameter = problem.answer[problem.answer.index("(") + 1 : problem.answer.index(")")]
        assert not task.check(problem.facts, f"def f({parameter}):\n    return [{parameter}, 'else']").correct
        assert not task.check(problem.facts, problem.answer.replace("return ", "return 7 if ") + " else 8").correct


def test_a_tuple_is_no_list():
    task = build_task("code", run_generated_code=True)
    facts = {"kind": "list", "steps": [["all", None], ["same", None], ["list", None]]}
    assert task.check(facts, "def f(xs):\n    return xs").correct
    assert task.check(facts, "def f(xs):\n    return list(tuple(xs))").correct
    assert not task.check(facts, "def f(xs):\n    return tuple(xs)").correct


@pytest.mark.parametrize("name", GENERATED_TASKS)
def test_streams_are_deterministic_and_differ_by_seed(name):
    assert drawn(name, count=50) == drawn.__wrapped__(name, count=50)
    assert [problem.facts for problem in drawn(name, count=50)] != [
        problem.facts for problem in drawn(name, seed=1, count=50)
    ]


@pytest.mark.parametrize("name", GENERATED_TASKS)
def test_splits_share_no_content_whatever_the_seed(name):
    contents = {
        split: {json.dumps(p.facts, sort_keys=True) for seed in (0, 1) for p in drawn(name, split, seed)}
        for split in SPLITS
    }
    for one, other in itertools.combinations(SPLITS, 2):
        assert not contents[one] & contents[other]
    assert all(
        len(drawn(name, split)) == len({json.dumps(p.facts, sort_keys=True) for p in drawn(name, split)})
        for split in ("validation", "test")
    )


@pytest.mark.parametrize("name", GENERATED_TASKS)
def test_held_out_combinations_occur_in_the_test_split_alone_and_fill_a_quarter_of_it(name):
    for split in SPLITS:
        held_out = [problem.held_out for problem in drawn(name, split)]
        assert held_out == [is_held_out(name, problem.combination) for problem in drawn(name, split)]
        assert sum(held_out) == (DRAWN // 4 if split == "test" else 0)


@pytest.mark.parametrize("name", GENERATED_TASKS)
def test_an_unknown_name_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"'training'.*train, validation, test"):
        next(problems(build_task(name), "training", 0))
    with pytest.raises(ValueError, match=r"'maths'.*math, json, code"):
        build_task("maths")


def restyled(lines, old, new, which):
    """`lines` with `old` replaced by `new` in the step lines that `which` selects."""
    return [line.replace(old, new) if which(index) else line for index, line in enumerate(lines)]


@pytest.mark.parametrize("verb", [" gives ", " makes "])
def test_math_accepts_another_wording_throughout_and_rejects_a_mixture(verb):
    task = build_task("math")
    for problem in styled("math", lambda p: p.answer.count(" = ") >= 2):
        lines = problem.answer.split("\n")
        steps = [index for index, line in enumerate(lines) if " = " in line]
        whole = restyled(lines, " = ", verb, lambda index: True)
        mixed = restyled(lines, " = ", verb, lambda index, last=steps[-1]: index >= last)
        assert task.check(problem.facts, "\n".join(whole)).correct
        assert not task.check(problem.facts, "\n".join(mixed)).correct


def test_math_rejects_steps_that_begin_differently():
    task = build_task("math")
    for problem in styled("math", lambda p: f"\n{p.answer}".count("\n- ") >= 2):
        before, after = (
            problem.answer.rsplit("- ", 1)
            if problem.answer.rindex("- ") == problem.answer.rindex("\n- ") + 1
            else ("", "")
        )
        if after:
            assert not task.check(problem.facts, before + after).correct
        assert task.check(problem.facts, f"\n{problem.answer}".replace("\n- ", "\n")).correct


def test_math_rejects_a_unit_named_in_some_lines_only():
    task = build_task("math")
    for problem in styled("math", lambda p: p.answer.count(f" {p.facts['item']}\n") >= 2):
        assert not task.check(problem.facts, problem.answer.replace(f" {problem.facts['item']}\n", "\n", 1)).correct


def test_math_rejects_an_opening_that_does_not_go_with_the_closing():
    task = build_task("math")
    for problem in styled("math", lambda p: "starts with " in p.answer and "ends with " in p.answer, 20):
        both = problem.answer.replace("starts with ", "begins with ").replace("ends with ", "finishes with ")
        assert task.check(problem.facts, both).correct
        assert not task.check(problem.facts, problem.answer.replace("starts with ", "begins with ")).correct


def test_math_rejects_a_wrong_last_number_wrong_arithmetic_and_a_missing_step():
    task = build_task("math")
    for problem in drawn("math"):
        body, total = problem.answer.rsplit("#### ", 1)
        assert not task.check(problem.facts, f"{body}#### {int(total) + 1}").correct
        assert not task.check(problem.facts, problem.answer + " and more").correct
        assert not task.check(problem.facts, f"#### {total}").correct
        if problem.answer.count(" = ") == 1:
            step = next(line for line in problem.answer.split("\n") if " = " in line)
            number = step.split(" = ")[1].split(" ")[0]
            assert not task.check(
                problem.facts, problem.answer.replace(f" = {number}", f" = {int(number) + 1}")
            ).correct


@pytest.mark.parametrize(
    "digits", ["1" * 5000, "١٢", "007", "²"], ids=["thousands", "other script", "leading zero", "superscript"]
)
def test_math_takes_only_plain_numbers(digits):
    """int() raises on the first and reads the second."""
    facts = {"name": "Mia", "item": "pears", "start": 5, "events": [["gain", 7]]}
    assert build_task("math").check(facts, "5 + 7 = 12\n#### 12").correct
    assert not build_task("math").check(facts, f"5 + {digits} = 12\n#### 12").correct
    assert not build_task("math").check(facts, f"5 + 7 = {digits}\n#### 12").correct


def reordered(value, rng):
    """The same record with the keys of every object in another order; rows of a table keep one order among them."""
    if isinstance(value, list) and isinstance(value[0], dict):
        keys = rng.sample(list(value[0]), len(value[0]))
        return [{key: row[key] for key in keys} for row in value]
    if isinstance(value, dict):
        return {key: reordered(value[key], rng) for key in rng.sample(list(value), len(value))}
    return value


@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_accepts_any_order_of_keys_in_any_one_layout(layout):
    task, rng = build_task("json"), random.Random(0)
    for problem in drawn("json"):
        assert task.check(problem.facts, json.dumps(reordered(problem.facts["record"], rng), **LAYOUTS[layout])).correct


def test_json_rejects_a_mixture_of_layouts():
    task = build_task("json")
    for problem in drawn("json"):
        compact, spaced = (json.dumps(problem.facts["record"], **LAYOUTS[layout]) for layout in ("compact", "spaced"))
        assert not task.check(problem.facts, spaced.replace(": ", ":", 1)).correct
        assert not task.check(problem.facts, compact.replace('":', '": ', 1)).correct
        assert not task.check(problem.facts, json.dumps(problem.facts["record"], indent=4)).correct


def test_json_rejects_a_repeated_key_a_wrong_value_and_a_missing_one():
    task = build_task("json")
    for problem in drawn("json"):
        record = problem.facts["record"]
        text = json.dumps(record)
        name = (record[0] if isinstance(record, list) else record)["name"]
        assert not task.check(
            problem.facts, text.replace(f'"name": "{name}"', f'"name": "{name}", "name": "{name}"', 1)
        ).correct
        assert not task.check(problem.facts, text.replace(f'"{name}"', '"Zed"', 1)).correct
        assert not task.check(problem.facts, text.replace(f'"name": "{name}", ', "", 1)).correct
        assert not task.check(problem.facts, text[:-1]).correct


def test_json_rejects_rows_that_order_their_keys_differently_or_come_in_another_order():
    task = build_task("json")
    for problem in styled("json", lambda p: isinstance(p.facts["record"], list)):
        rows = problem.facts["record"]
        assert not task.check(
            problem.facts, json.dumps([rows[0], *(dict(reversed(row.items())) for row in rows[1:])])
        ).correct
        assert not task.check(problem.facts, json.dumps(rows[::-1])).correct


def test_json_tells_a_number_from_a_string_and_from_a_truth_value():
    task = build_task("json")
    facts = {"record": {"name": "Mia", "age": 1}}
    assert task.check(facts, '{"name": "Mia", "age": 1}').correct
    for other in ('"1"', "1.0", "true", "NaN", "1" * 5000, "[" * 100_000):
        assert not task.check(facts, '{"name": "Mia", "age": ' + other + "}").correct


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS | st.lists(st.fixed_dictionaries({"a": SCALARS, "b": SCALARS}), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
RENDERINGS = [*LAYOUTS.values(), {"indent": 4}, {"indent": "\t"}, {"separators": (" , ", " : ")}]


def with_another_leaf(value):
    """The value with its last leaf changed."""
    if isinstance(value, list) and value:
        return [*value[:-1], with_another_leaf(value[-1])]
    if isinstance(value, dict) and value:
        return value | {list(value)[-1]: with_another_leaf(list(value.values())[-1])}
    return f"{value}x" if isinstance(value, str) else [value, 0]


@given(value=VALUES, layout=st.sampled_from(RENDERINGS), escaped=st.booleans())
def test_json_takes_any_reference_as_an_answer_to_itself_and_no_changed_value(value, layout, escaped):
    task = build_task("json")
    reference = json.dumps(value, ensure_ascii=escaped, **layout)
    facts = json.loads(json.dumps(task.facts("", reference)))
    assert task.check(facts, f"\n{reference} ").correct
    assert task.check(facts, json.dumps(value, ensure_ascii=not escaped, **layout)).correct
    assert not task.check(facts, json.dumps(with_another_leaf(value), ensure_ascii=escaped, **layout)).correct
    assert not task.check(facts, json.dumps([value, value], ensure_ascii=escaped, **layout)).correct


REFERENCES = [
    '{"city": "Zürich"}',
    '{"city": "Z\\u00fcrich\\/\\t"}',
    '{"price": 1.50}',
    '{"x": 1e5, "y": -0, "z": 1E+400}',
    '["a", "b"]',
    "[1, 2]",
    '[{"a": 1}, {"b": 2}]',
    '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]',
    '[[{"a": 1}], [{"a": 1}]]',
    '[{"a": 1}, 2]',
    '{"a":  1,"b" :2}',
    "[ ]",
    '{"text": "[1,2], {\\"a\\":1}"}',
]


@pytest.mark.parametrize("reference", REFERENCES)
def test_json_takes_a_reference_however_it_is_written(reference):
    task = build_task("json")
    facts = task.facts("", reference)
    assert task.check(facts, reference).correct
    assert task.check(facts, json.dumps(json.loads(reference))).correct or "400" in reference
    assert not task.check(facts, reference[:-1]).correct


def test_json_asks_the_rows_of_a_reference_for_one_order_and_one_layout():
    task = build_task("json")
    facts = task.facts("", '[{"a": 1.50, "b": "ü"}, {"a": 2, "b": "x"}]')
    assert task.check(facts, '[{"b": "\\u00fc", "a": 1.5}, {"b": "x", "a": 2}]').correct
    assert not task.check(facts, '[{"b": "ü", "a": 1.5}, {"a": 2, "b": "x"}]').correct
    assert not task.check(facts, '[{"a":1.5, "b": "ü"}, {"a": 2, "b": "x"}]').correct


@pytest.mark.parametrize("depth", [200, 400, 800, 2000, 5000])
def test_json_refuses_a_reference_that_is_nested_too_deeply_or_takes_it(depth):
    task = build_task("json")
    for reference in ("[" * depth + "]" * depth, '{"a": ' * depth + "1" + "}" * depth):
        try:
            facts = task.facts("", reference)
        except ValueError:
            continue
        assert task.check(facts, reference).correct


@given(facts=VALUES, text=st.text('[]{},:" \\aue0123.-\n', max_size=30) | VALUES.map(json.dumps))
def test_json_never_raises_whatever_the_reference_and_the_text(facts, text):
    build_task("json").check({"record": facts}, text)


@given(
    text=st.text(max_size=80)
    | st.sampled_from(
        ["{", "[]", "null", "####", "def f(x):", "[" * 100_000, "\ud800", "\0", "def f(x):\n    return " + "-" * 9999]
    )
)
def test_checking_never_raises_on_any_text(text):
    for name in GENERATED_TASKS:
        task = build_task(name, run_generated_code=True)
        for problem in PROBLEMS[name]:
            assert not task.check(problem.facts, text).correct


@given(data=st.data())
def test_checking_never_raises_on_a_damaged_answer(data):
    for name in ("math", "json"):
        problem = data.draw(st.sampled_from(PROBLEMS[name]))
        start = data.draw(st.integers(0, len(problem.answer)))
        stop = data.draw(st.integers(start, len(problem.answer)))
        build_task(name).check(
            problem.facts, problem.answer[:start] + data.draw(st.text(max_size=5)) + problem.answer[stop:]
        )


PROBLEMS = {name: drawn(name, count=5) for name in GENERATED_TASKS}


def test_code_is_not_judged_without_permission():
    with pytest.raises(SandboxRefused):
        build_task("code").check(PROBLEMS["code"][0].facts, PROBLEMS["code"][0].answer)
