"""The judge of tasks that have HumanEval's layout, for task files: it runs programs in this package's sandbox.

A task file names it as `process_results: !function learn2pd.harness.programs.passes`, with the metric `acc`, and says
`unsafe_code: true`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from learn2pd.data.humaneval import HumanEvalTask
from learn2pd.data.sandbox import Sandbox

PERMISSION = "HF_ALLOW_CODE_EVAL"  # the variable that the harness's own tasks ask


def passes(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Judge an answer by the tests of its problem.

    Args:
        doc: The problem, with `prompt`, `test` and `entry_point`.
        results: The answer alone: the body of the function that the prompt begins, the whole function, or either in a
            Markdown fence.

    Returns:
        `acc`, 1 where all tests pass and 0 otherwise.

    Raises:
        UserError: Running generated code was not allowed: data.run_generated_code=true allows it, and outside of
            `learn2pd eval` the variable HF_ALLOW_CODE_EVAL=1.
    """
    sandbox = Sandbox(os.environ.get(PERMISSION) == "1")
    sandbox.check_allowed()
    facts = {key: doc[key] for key in ("prompt", "test", "entry_point")}
    return {"acc": float(HumanEvalTask(sandbox).check(facts, results[0]).correct)}
