"""Task files of lm-eval with a few questions each, whose data lie beside them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import yaml

from learn2pd.data.tasks import problems
from learn2pd.registry import build_task

COMMON = {"dataset_path": "json", "test_split": "test", "metadata": {"version": 1.0}}
JUDGE = "process_results: !function learn2pd.harness.programs.passes\n"
EXACT = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
LAST_NUMBER = {"function": "regex", "regex_pattern": r"#### (-?[0-9]+)"}
TASKS = {
    "sums": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer.split('#### ')[-1]}}",
        "generation_kwargs": {"until": ["\n\n", "Question:"], "max_gen_toks": 96, "do_sample": False},
        "filter_list": [{"name": "strict", "filter": [LAST_NUMBER, {"function": "take_first"}]}],
        "metric_list": [EXACT],
    },
    "programs": {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "",
        "unsafe_code": True,
        "generation_kwargs": {"until": ["\nclass "], "max_gen_toks": 48, "do_sample": False},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"}],
    },
    "forced": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[gold]}}",
        "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{choices[0]}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}
PROGRAM = {
    "prompt": 'def double(value):\n    """Return two times the value."""\n',
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(-1) == -2\n",
    "entry_point": "double",
}


def math_rows(count: int) -> list[dict[str, object]]:
    rows = []
    for problem in itertools.islice(problems(build_task("math"), "test", 0), count):
        number = int(problem.answer.split("#### ")[-1])
        choices = [f"#### {number + step}" for step in (0, 1, 7)]
        rows.append({"question": problem.prompt, "answer": problem.answer, "choices": choices, "gold": 0})
    return rows


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in {"math": math_rows(3), "programs": [PROGRAM]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, task in TASKS.items():
        data = folder / ("programs.jsonl" if name == "programs" else "math.jsonl")
        described = {"task": name, **COMMON, "dataset_kwargs": {"data_files": {"test": str(data)}}, **task}
        text = yaml.safe_dump(described) + (JUDGE if name == "programs" else "")
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder
