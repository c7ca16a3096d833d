"""The built-in tasks `math`, `json`, `code`, and the checker of the user's own numeric questions."""

from __future__ import annotations

from learn2pd.data.sandbox import Sandbox
from learn2pd.data.tasks.base import SPLITS, Checker, Problem, Task, Verdict, problems
from learn2pd.data.tasks.final_number import FinalNumberTask
from learn2pd.embedded.tasks.json_records import JsonTask
from learn2pd.embedded.tasks.math_problems import MathTask
from learn2pd.embedded.tasks.python_functions import CodeTask

TASK_NAMES = ("math", "json", "code")


def build_task(name: str, run_generated_code: bool = False) -> Task:
    """The built-in task of a name.

    Args:
        name: one of `TASK_NAMES`.
        run_generated_code: allow the task `code` to run model output in a limited subprocess when it checks answers.

    Raises:
        ValueError: for an unknown name.
    """
    if name == "math":
        return MathTask()
    if name == "json":
        return JsonTask()
    if name == "code":
        return CodeTask(Sandbox(run_generated_code))
    raise ValueError(f"task={name!r}: expected one of {', '.join(TASK_NAMES)}")


def build_checkers(run_generated_code: bool = False) -> dict[str, Checker]:
    """Every checker by the name of its task."""
    return {"final_number": FinalNumberTask()} | {name: build_task(name, run_generated_code) for name in TASK_NAMES}


__all__ = ["SPLITS", "TASK_NAMES", "Checker", "Problem", "Task", "Verdict", "build_checkers", "build_task", "problems"]
