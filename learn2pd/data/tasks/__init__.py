"""What a task is, and the checkers of questions that people wrote. registry.py gives names to tasks."""

from __future__ import annotations

from learn2pd.data.tasks.base import (
    SPLITS,
    Checker,
    Problem,
    ProgramChecker,
    ScoringChecker,
    Task,
    Verdict,
    problems,
)

__all__ = ["SPLITS", "Checker", "Problem", "ProgramChecker", "ScoringChecker", "Task", "Verdict", "problems"]
