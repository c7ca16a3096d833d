"""Files as people have them, each read through the configuration of a run or by the reader alone."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learn2pd.cli.config import load_config
from learn2pd.cli.stages.components import prompts_of
from learn2pd.data.reading import read_records
from learn2pd.data.tasks.final_number import last_number
from learn2pd.errors import UserError

ROOT = Path(__file__).parents[2]


def questions(count=12, **more):
    """Questions with answers whose last line is a number; `more` are fields of every entry."""
    return [{"question": f"What is {n} + 1?", "answer": f"It is\n#### {n + 1}"} | more for n in range(count)]


def as_lines(rows, end="\n"):
    """The bytes of a JSONL file with these entries."""
    return (end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end).encode()


def run(path, *overrides):
    """The prompts of a run on one file."""
    counts = ["data.train_prompts=6", "data.validation_prompts=3", "data.test_prompts=3"]
    return prompts_of(load_config("tiny_filter", ["data.source=jsonl", f"data.path={path}", *counts, *overrides]))


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_line_ends_at_a_line_feed_and_at_no_other_separator(tmp_path, character):
    rows = questions()
    rows[3]["question"] += f" one{character}two"
    rows[5]["note"] = f"copied{character}from the web"
    raw = as_lines(rows) if character > "\x1f" else "\n".join(map(json.dumps, rows)).encode()
    (tmp_path / "rows.jsonl").write_bytes(raw)
    records = read_records(tmp_path / "rows.jsonl")
    assert [row.fields for row in records.rows] == rows
    assert records.complaints == []
    assert records.rows[-1].place == "line 12"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["line feed", "both", "carriage return"])
def test_every_line_end_of_the_world_is_one(tmp_path, end):
    (tmp_path / "rows.jsonl").write_bytes(as_lines(questions(), end))
    records = read_records(tmp_path / "rows.jsonl")
    assert [row.fields for row in records.rows] == questions()
    assert records.rows[2].place == "line 3"


def test_a_byte_order_mark_is_no_part_of_the_first_line_nor_of_a_file_that_was_appended(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "rows.jsonl").write_bytes(mark + as_lines(questions(6)) + mark + as_lines(questions(12)[6:]))
    assert [row.fields for row in read_records(tmp_path / "rows.jsonl").rows] == questions()


DAMAGED = {
    "half a character": ('{"question": "How many \\ud83d pears?", "answer": "5"}', "half a character"),
    "half a character in the answer": ('{"question": "How many pears?", "answer": "\\udc00 5"}', "half a character"),
    "nested arrays": ("[" * 100_000, "nested too deeply"),
    "nested objects": ('{"question":' * 100_000, "nested too deeply"),
    "a key twice": ('{"question": "a", "question": "b", "answer": "1"}', "'question' stands twice"),
    "cut off": ('{"question": "a", "ans', "not JSON"),
    "two objects": ('{"question": "a"}{"question": "b"}', "not JSON"),
    "Python": ("{'question': 'a'}", "not JSON"),
    "a list": ('["a"]', "not an object but list"),
    "a number": ("7", "not an object but int"),
    "null": ("null", "not an object but NoneType"),
    "a prompt of null": ('{"question": null}', "no text in the field 'question'"),
    "a prompt of digits": ('{"question": ' + "9" * 6000 + "}", "no text"),
    "a prompt of texts": ('{"question": ["a", "b"]}', "no text in the field 'question'"),
    "an empty prompt": ('{"question": " \\n\\u00a0"}', "no text in the field 'question'"),
    "another field": ('{"prompt": "a"}', "no text in the field 'question' (its fields: prompt)"),
}


@pytest.mark.parametrize("where", [1, 6, 13])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_counted_by_its_number_and_costs_no_other_line(tmp_path, caplog, name, where):
    line, reason = DAMAGED[name]
    lines = [json.dumps(row) for row in questions()]
    lines.insert(where - 1, line)
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert len(run(tmp_path / "rows.jsonl", "data.answer_field=answer")) == 12
    assert "1 line skipped, 12 prompts left" in caplog.text
    assert f"line {where}: " in caplog.text
    assert reason in caplog.text


def test_a_line_that_is_not_utf8_is_counted(tmp_path, caplog):
    raw = as_lines(questions()).split(b"\n")
    raw.insert(4, '{"question": "Wie heißt er?"}'.encode("latin-1"))
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(raw))
    assert len(run(tmp_path / "rows.jsonl")) == 12
    assert "line 5: not UTF-8 (byte 0xdf)" in caplog.text


@pytest.mark.parametrize("value", ["9" * 6000, "-" + "9" * 6000, "NaN", "-Infinity", "1e999", "1E-400"])
def test_a_number_beyond_all_measure_in_another_field_costs_nothing(tmp_path, value):
    lines = [json.dumps(row)[:-1] + f', "id": {value}}}' for row in questions()]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert len(run(tmp_path / "rows.jsonl")) == 12


@pytest.mark.parametrize("value", ["9" * 6000, "NaN", "Infinity", "true", "[1, 2]", "null", '""', '"none"'])
def test_an_answer_without_a_value_leaves_its_prompt_unjudged_and_is_counted(tmp_path, caplog, value):
    rows = [json.dumps(row) for row in questions(11)]
    rows.insert(2, f'{{"question": "What?", "answer": {value}}}')
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    prompts = run(tmp_path / "rows.jsonl", "data.answer_field=answer")
    assert [prompt.text for prompt in prompts if prompt.task is None] == ["What?"]
    assert "1 line without an answer that can be judged" in caplog.text
    assert "line 3: " in caplog.text


@pytest.mark.parametrize("value", [7, 7.0, "7", {"value": 7}])
def test_an_answer_may_be_a_number_or_an_object(tmp_path, value):
    (tmp_path / "rows.jsonl").write_bytes(as_lines(questions(answer=value)))
    assert {prompt.facts["number"] for prompt in run(tmp_path / "rows.jsonl", "data.answer_field=answer")} == {7}


@pytest.mark.parametrize("answers", [["3.50", "-4.00", "0.00"], ["12345678901234567890.125", "1.000", "7.100"]])
def test_a_decimal_of_a_parquet_file_is_an_answer_with_all_its_digits(tmp_path, answers):
    table = {"question": ["a", "b", "c"], "answer": [Decimal(answer) for answer in answers]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    prompts = run(tmp_path / "rows.parquet", "data.answer_field=answer")
    expected = dict(zip("abc", (last_number(answer) for answer in answers), strict=True))
    assert {prompt.text: prompt.facts["number"] for prompt in prompts} == expected


def written(folder: Path, name: str, rows) -> Path:
    """Rows in a file of the kind that its name tells."""
    path, plain = folder / name, name.removesuffix(".gz")
    if plain.endswith((".csv", ".tsv")):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if plain.endswith(".csv") else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif plain.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif plain.endswith(".json"):
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_bytes(as_lines(rows))
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


KINDS = ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.parquet"]


@pytest.mark.parametrize("name", [*KINDS, *(f"{name}.gz" for name in KINDS)])
def test_every_kind_of_file_gives_the_same_prompts(tmp_path, name):
    rows = [{"question": f'Ünï "{n}",\n\u2028\tand more', "answer": f"#### {n}"} for n in range(12)]
    expected = run(written(tmp_path, "expected.jsonl", rows), "data.answer_field=answer")
    prompts = run(written(tmp_path, name, rows), "data.answer_field=answer")
    assert prompts == expected
    assert {prompt.origin.split(", ")[0] for prompt in prompts} == {name}


def test_gzip_and_parquet_are_known_without_their_endings(tmp_path):
    path = written(tmp_path, "rows.parquet", questions())
    (tmp_path / "plain").write_bytes(path.read_bytes())
    (tmp_path / "packed").write_bytes(gzip.compress(as_lines(questions())))
    assert len(run(tmp_path / "plain")) == len(run(tmp_path / "packed")) == 12


def test_rows_of_a_table_that_do_not_fit_its_first_line_are_counted(tmp_path, caplog):
    lines = ["question,answer", *(f"What is {n}?,{n}" for n in range(12)), "cut off", "one,two,three", '"never closed']
    (tmp_path / "rows.csv").write_text("\n".join(lines), encoding="utf-8")
    assert len(run(tmp_path / "rows.csv", "data.answer_field=answer")) == 12
    assert "3 lines skipped" in caplog.text
    for place in ("line 14: 1 cells", "line 15: 3 cells", "line 16: not a row"):
        assert place in caplog.text


def test_a_row_of_a_table_is_named_by_the_line_it_begins_in(tmp_path):
    (tmp_path / "rows.csv").write_text('question\n"one\ntwo"\nthree\n', encoding="utf-8")
    assert [row.place for row in read_records(tmp_path / "rows.csv").rows] == ["line 2", "line 4"]


def test_the_cells_of_a_table_stay_as_they_are_written(tmp_path):
    (tmp_path / "rows.csv").write_text("\ufeffquestion,answer\n007,1e5\n", encoding="utf-8")
    assert read_records(tmp_path / "rows.csv").rows[0].fields == {"question": "007", "answer": "1e5"}


def test_entries_of_an_array_that_are_no_records_are_counted(tmp_path, caplog):
    text = json.dumps(["a", *questions(), 7])[:-1] + ', {"question": "a", "question": "b"}]'
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    assert len(run(tmp_path / "rows.json")) == 12
    assert "3 entries skipped" in caplog.text
    assert "entry 15: the key 'question' stands twice" in caplog.text


ARRAYS = {
    "one line": lambda rows: json.dumps(rows),
    "one entry a line": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "one entry a line, the first behind the bracket": lambda rows: "[" + ",\n".join(map(json.dumps, rows)) + "]",
    "commas at the beginnings": lambda rows: "\ufeff\r\n[\r\n " + "\r\n,".join(map(json.dumps, rows)) + "\r\n]",
    "indented": lambda rows: json.dumps(rows, indent=2),
    "a line for every value": lambda rows: re.sub(r"([{}:])", r"\n\1\n", json.dumps(rows)),
    "nested objects in lines": lambda rows: json.dumps(rows).replace(
        '{"question": "inner"}', '\n{"question": "inner"}\n'
    ),
}


@pytest.mark.parametrize("layout", ARRAYS)
def test_every_entry_of_an_array_is_read_whatever_its_line_ends(tmp_path, layout):
    rows = questions(meta={"question": "inner"})
    (tmp_path / "rows.json").write_text(ARRAYS[layout](rows), encoding="utf-8")
    records = read_records(tmp_path / "rows.json")
    assert [row.fields for row in records.rows] == rows
    assert records.complaints == []
    assert records.rows[2].place == "entry 3"


TWICE = [
    '{"question": "q", "answer": {"x": 1, "x": 2}}',
    '{"question": "q", "answer": {"x": {"y": [0, [{"x": 1, "x": 1}]]}}}',
    '{"messages": [{"role": "user", "content": "one", "x": "two", "x": "three"}]}',
]


@pytest.mark.parametrize("line", TWICE)
def test_a_key_that_stands_twice_at_any_depth_costs_its_record(tmp_path, line):
    lines = [json.dumps({"question": "a", "answer": {"x": [1, 1], "y": {"x": 1}}}), line, '{"question": "b"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "rows.json").write_text(f"[{','.join(lines)}]", encoding="utf-8")
    for name, place in (("rows.jsonl", "line 2"), ("rows.json", "entry 2")):
        records = read_records(tmp_path / name)
        assert [row.fields["question"] for row in records.rows] == ["a", "b"]
        assert records.complaints == [f"{place}: the key 'x' stands twice"]


STRAY = ['"5 inch pipe,2', 'a pipe,"2', 'one,"a ""pipe"" of 5 inch', '"5 inch" pipe,2', '"5 inch",pipe","2']


@pytest.mark.parametrize("after", ["", '"a, b",1\n', '"two\nlines",1\n'], ids=["plain", "quoted", "two lines"])
@pytest.mark.parametrize("line", STRAY)
def test_a_stray_quote_costs_its_own_line_alone(tmp_path, line, after):
    rows = [f"q{n},{n}\n" for n in range(1000)]
    text = "question,answer\n" + rows[0] + line + "\n" + "".join(rows[1:500]) + after + "".join(rows[500:])
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    records = read_records(tmp_path / "rows.csv")
    assert [row.fields["answer"] for row in records.rows if row.fields["question"][0] == "q"] == [
        *map(str, range(1000))
    ]
    assert len(records.rows) == 1000 + bool(after)
    assert len(records.complaints) == 1
    assert records.complaints[0].startswith("line 3: not a row of a table (")
    assert records.rows[1].place == "line 4"


@given(
    rows=st.lists(st.lists(st.text('a,"\n\r ', min_size=1, max_size=6), min_size=2, max_size=2), max_size=8),
    damaged=st.lists(st.text('ab,"', min_size=1, max_size=8), max_size=4),
)
def test_the_rows_before_a_damaged_line_are_read_and_no_line_is_counted_twice(tmp_path, rows, damaged):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([["question", "answer"], *rows])
    good = file.getvalue()
    (tmp_path / "rows.csv").write_text(good + "x,y\n" + "\n".join(damaged), encoding="utf-8", newline="")
    records = read_records(tmp_path / "rows.csv")
    assert [list(row.fields.values()) for row in records.rows[: len(rows)]] == rows
    places = [row.place for row in records.rows] + [line.split(":")[0] for line in records.complaints]
    assert len(set(places)) == len(places)
    assert set(places) <= {f"line {number}" for number in range(2, len(io.StringIO(good, newline="").readlines()) + 10)}


def test_a_table_with_damage_in_every_line_takes_no_longer_than_its_lines(tmp_path, monkeypatch):
    lines = 3000
    (tmp_path / "rows.csv").write_text("question,answer\n" + 'one","two\n' * lines, encoding="utf-8")
    taken = []

    class Counting:
        def __init__(self, source, **options):
            self.reader = original(map(self.take, source), **options)

        def take(self, line):
            taken.append(line)
            return line

        def __next__(self):
            return next(self.reader)

        line_num = property(lambda self: self.reader.line_num)

    original = csv.reader
    monkeypatch.setattr(csv, "reader", Counting)
    records = read_records(tmp_path / "rows.csv")
    assert len(records.complaints) == lines
    assert len(taken) <= 3 * lines


REFUSED = {
    "empty": ("rows.jsonl", b"", "the file is empty"),
    "blank": ("rows.jsonl", b"\n \r\n\n", "the file is empty"),
    "only a mark": ("rows.jsonl", b"\xef\xbb\xbf\n", "the file is empty"),
    "empty, compressed": ("rows.jsonl.gz", gzip.compress(b""), "the file is empty"),
    "an empty array": ("rows.json", b"[]", "the file is empty"),
    "a table with a first line alone": ("rows.csv", b"question,answer\n", "question, answer"),
    "a name twice": ("rows.csv", b"question,question\n1,2\n", "'question'"),
    "cut off, compressed": ("rows.jsonl.gz", gzip.compress(as_lines(questions()))[:-20], "cut off or damaged"),
    "not compressed data": ("rows.jsonl.gz", b"\x1f\x8bnothing", "cut off or damaged"),
    "no Parquet": ("rows.parquet", b"PAR1 and nothing", "Parquet"),
    "another ending": ("rows.parquet", as_lines(questions()), "Parquet"),
    "UTF-16": ("rows.jsonl", "\ufeff{}".encode("utf-16-le"), "UTF-16"),
    "UTF-16, other order": ("rows.csv", "\ufeffa".encode("utf-16-be"), "UTF-16"),
    "no text": ("rows.jsonl", b"\x80\x81\n\xff", "cannot be read"),
    "a table in another encoding": ("rows.csv", "question\nWie heißt\n".encode("latin-1"), "line 2 is not UTF-8"),
    "a broken array": ("rows.json", b'[\n{"question": "a"},\n{"question": }\n]', "JSON array"),
    "a broken array in one line": ("rows.json", b'[{"question": "a"}, {"question": }]', "JSON array"),
    "a broken array with a good last line": ("rows.json", b'[\n{"question": },\n{"question": "a"}\n]', "JSON array"),
    "an array that is cut off": ("rows.json", b'[\n{"question": "a"},\n{"question": "b"}\n', "JSON array"),
    "an array in another encoding": (
        "rows.json",
        '[\n{"question": "ß"},\n{"question": "b"}\n]'.encode("latin-1"),
        "0xdf",
    ),
    "a first line with a stray quote": ("rows.csv", b'question,"ans\na,1\nb,2\n', "line 1: not a row of a table"),
    "one object": ("rows.json", b'{\n"rows": []\n}', "one JSON object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_records_is_one_line(tmp_path, name):
    file, raw, reason = REFUSED[name]
    (tmp_path / file).write_bytes(raw)
    with pytest.raises(UserError) as caught:
        run(tmp_path / file)
    assert reason in str(caught.value)
    assert f"data.path='{tmp_path / file}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    written(tmp_path, "questions.jsonl", questions())
    with pytest.raises(UserError, match=r"cannot be read, no such file; did you mean 'questions.jsonl'"):
        read_records(tmp_path / "question.jsonl")
    with pytest.raises(UserError, match=r"cannot be read, no such file$"):
        read_records(tmp_path / "nowhere" / "question.jsonl")
    with pytest.raises(UserError, match=r"it is a folder.*data\.source=hub"):
        read_records(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_records("a\0b")


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "rows.jsonl", questions())
    assert len(run("~/rows.jsonl")) == 12


def test_a_pipe_is_read_once_and_serves_every_stage(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(as_lines(questions())))
    writer.start()
    first = run(tmp_path / "pipe")
    writer.join()
    assert first == run(tmp_path / "pipe")
    assert len(first) == 12


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = written(tmp_path, "rows.jsonl", questions())
    before = run(path)
    written(tmp_path, "rows.jsonl", questions(13)[1:])
    assert {prompt.text for prompt in before} != {prompt.text for prompt in run(path)}


def test_reading_does_not_depend_on_the_locale(tmp_path):
    path = written(tmp_path, "rows.csv", [{"question": f"{n} Äpfel — 李"} for n in range(3)])
    code = f"from learn2pd.data.reading import read_records; print(ascii(read_records({str(path)!r}).rows[0].fields))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout.decode().strip() == ascii({"question": "0 Äpfel — 李"})


@pytest.mark.parametrize("path", sorted((ROOT / "learn2pd").rglob("*.py")), ids=lambda path: path.stem)
def test_no_file_is_read_or_written_in_the_encoding_of_the_surroundings(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        binary = any(isinstance(text, str) and "b" in text for text in texts)
        if name in ("read_text", "write_text") or (name == "open" and not binary):
            assert any(keyword.arg == "encoding" for keyword in node.keywords), f"{path.name}, line {node.lineno}"
