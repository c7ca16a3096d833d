import json
import logging

import pytest

from learn2pd.data.prompts import field_prompts, jsonl_records, task_prompts
from learn2pd.errors import UserError

COUNTS = {"train": 6, "validation": 2, "test": 2}


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def read(path, counts=COUNTS, **options):
    records, complaints = jsonl_records(path)
    return field_prompts(records, complaints, options.get("prompt_field", "question"), options.get("answer_field"), counts, options.get("seed", 0))


def questions(count):
    return [{"question": f"What is {n} + 1?", "answer": f"It is\n#### {n + 1:,}"} for n in range(count)]


def test_every_prompt_is_in_one_split_and_counts_are_kept(tmp_path):
    prompts = read(write(tmp_path / "p.jsonl", questions(20)))
    assert len({prompt.id for prompt in prompts}) == len(prompts) == 10
    assert {split: sum(prompt.split == split for prompt in prompts) for split in COUNTS} == COUNTS


def test_splits_depend_on_the_seed_and_not_on_the_order_of_the_lines(tmp_path):
    lines = questions(20)
    first, reversed_lines = read(write(tmp_path / "a.jsonl", lines)), read(write(tmp_path / "b.jsonl", lines[::-1]))
    assert first == reversed_lines
    assert first != read(tmp_path / "a.jsonl", seed=1)


def test_a_repeated_prompt_is_one_prompt(tmp_path):
    prompts = read(write(tmp_path / "p.jsonl", questions(10) * 2))
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 10


def test_fewer_prompts_than_asked_keep_the_proportions(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        prompts = read(write(tmp_path / "p.jsonl", questions(10)), {"train": 60, "validation": 20, "test": 20})
    assert {split: sum(prompt.split == split for prompt in prompts) for split in COUNTS} == COUNTS
    assert "100 prompts asked for, 10 there" in caplog.text


def test_bad_lines_are_counted_with_their_numbers_and_the_rest_goes_on(tmp_path, caplog):
    lines = ["{not json", *questions(8), {"prompt": "other field"}, '["a list"]', {"question": "   "}, {"question": 7}, "", *questions(12)[8:]]
    with caplog.at_level(logging.WARNING):
        prompts = read(write(tmp_path / "p.jsonl", lines))
    assert len(prompts) == 10
    assert "5 lines skipped, 12 prompts left" in caplog.text
    for number in ("line 1:", "line 10:", "line 11:", "line 12:", "line 13:"):
        assert number in caplog.text


def test_all_bad_is_an_error_that_shows_the_fields_there_are(tmp_path):
    with pytest.raises(UserError, match=r"none of the 2 lines.*line 1.*'question'.*prompt"):
        read(write(tmp_path / "p.jsonl", [{"prompt": "a"}, {"prompt": "b"}]))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match="empty"):
        jsonl_records(path)


def test_a_missing_or_binary_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        jsonl_records(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"^examples.path='.*none.jsonl': cannot be read"):
        jsonl_records(tmp_path / "none.jsonl", "examples.path")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        jsonl_records(tmp_path / "binary.jsonl")


def test_a_line_that_is_odd_json_is_a_complaint_and_a_separator_of_lines_inside_a_text_is_text(tmp_path):
    lines = ['{"question": "a", "question": "b"}', "[" * 100_000, '{"question": "one\u2028two\x85three"}']
    records, complaints = jsonl_records(write(tmp_path / "p.jsonl", lines))
    assert [(record["__line__"], record["question"]) for record in records] == [(3, "one\u2028two\x85three")]
    assert [complaint.split(":")[0] for complaint in complaints] == ["line 1", "line 2"]
    assert "'question' stands twice" in complaints[0]


def test_the_answer_field_gives_the_checker_its_number(tmp_path):
    prompts = read(write(tmp_path / "p.jsonl", [{"question": f"q{n}", "answer": f"3 + 4\n#### 1,0{n:02}"} for n in range(10)]), answer_field="answer")
    assert {prompt.task for prompt in prompts} == {"final_number"}
    assert {prompt.facts["number"] for prompt in prompts} == {1000.0 + n for n in range(10)}


def test_built_in_tasks_share_the_counts_and_never_a_prompt():
    prompts = task_prompts(["math", "json", "code"], {"train": 10, "validation": 4, "test": 5}, seed=0)
    assert [sum(prompt.split == split for prompt in prompts) for split in ("train", "validation", "test")] == [10, 4, 5]
    assert len({prompt.id for prompt in prompts}) == 19


def test_an_unknown_task_names_its_neighbour():
    with pytest.raises(UserError, match="did you mean 'math'"):
        task_prompts(["maths"], {"train": 1}, 0)
