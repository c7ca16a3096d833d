"""Run one generated Python function on given arguments, in a subprocess with limits, and only where that was allowed.

Three fences, each of which a generated function must pass: the source may use no import, attribute starting with an
    underscore, or name
outside a short list (checked on the syntax tree before anything runs); the process is isolated (`-I -S`, empty
environment, a temporary folder) and its builtins are that short list and nothing more, because a name that is local in
one scope is a builtin in another; CPU seconds, memory, file size and processes are limited by the operating system.
"""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from learn2pd.errors import UserError

ALLOWED_NAMES = frozenset(
    [
        "abs",
        "all",
        "any",
        "bool",
        "enumerate",
        "float",
        "int",
        "len",
        "list",
        "map",
        "max",
        "min",
        "range",
        "reversed",
        "round",
        "set",
        "sorted",
        "str",
        "sum",
        "tuple",
        "zip",
    ]
)
ALLOWED_METHODS = frozenset(
    [
        "append",
        "count",
        "extend",
        "find",
        "insert",
        "join",
        "lower",
        "pop",
        "replace",
        "reverse",
        "sort",
        "split",
        "startswith",
        "endswith",
        "strip",
        "title",
        "upper",
    ]
)
FORBIDDEN = (
    ast.Import, ast.ImportFrom, ast.ClassDef, ast.Global, ast.Nonlocal, ast.Try, ast.TryStar, ast.With, ast.Raise,
    ast.AsyncFunctionDef, ast.Await,
    ast.Match,  # a class pattern reads any attribute: case str(__class__=c)
)  # fmt: skip
CPU_SECONDS, WALL_SECONDS, MEMORY_BYTES = 2, 5.0, 512 * 2**20

RUNNER = """
import builtins, json, resource, sys
cpu, memory, names = json.loads(sys.argv[1])
limits = {resource.RLIMIT_CPU: cpu, resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NPROC: 0}
for limit, value in limits.items():
    resource.setrlimit(limit, (value, value))
job = json.loads(sys.stdin.read())
scope = {"__builtins__": {name: getattr(builtins, name) for name in names}}
try:
    exec(job["source"], scope)
    results = [scope[job["function"]](argument) for argument in job["arguments"]]
    text = json.dumps({"results": results})
    sys.stdout.write(text if len(text) < 65536 else json.dumps({"error": "the results are longer than 64 KiB"}))
except BaseException as error:
    sys.stdout.write(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


@dataclass(frozen=True)
class Outcome:
    results: list[Any] = field(default_factory=list)
    error: str = ""


class SandboxRefused(UserError):
    """Generated code would have to run and nobody allowed it."""


class Sandbox:
    """Runs generated functions.

    Args:
        allowed: the explicit permission; False makes `call` raise before anything is parsed.
    """

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    def call(self, source: str, arguments: Sequence[Any]) -> Outcome:
        """Define the one function in `source` and call it with each argument (JSON values).

        Raises:
            SandboxRefused: when running generated code was not allowed.
        """
        self.check_allowed()
        return _call(source, json.dumps(list(arguments)))

    def check_allowed(self) -> None:
        """Raises SandboxRefused when running generated code was not allowed."""
        if not self.allowed:
            raise SandboxRefused(
                "judging programs runs generated Python: "
                "set data.run_generated_code=true to allow it, or leave the task out"
            )


@functools.lru_cache(maxsize=4096)  # methods that agree produce the same program again and again
def _call(source: str, arguments: str) -> Outcome:
    try:
        function = _checked_function(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Outcome(error=f"rejected: {error}")
    job = json.dumps({"source": source, "function": function, "arguments": json.loads(arguments)})
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            RUNNER,
            json.dumps([CPU_SECONDS, MEMORY_BYTES, sorted(ALLOWED_NAMES)]),
        ]
        try:
            done = subprocess.run(
                command,
                input=job,
                capture_output=True,
                encoding="utf-8",
                timeout=WALL_SECONDS,
                env={},
                cwd=folder,
                check=False,
            )
            outcome = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            return Outcome(error=f"no result within {WALL_SECONDS:g} seconds")
        except ValueError:
            return Outcome(error="the process was stopped by its limits")
    return Outcome(outcome.get("results", []), outcome.get("error", ""))


def _checked_function(source: str) -> str:
    """The name of the single function that `source` defines.

    Raises:
        SyntaxError, ValueError: not Python, or Python outside the allowed subset.
    """
    tree = ast.parse(source)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef) or len(tree.body[0].args.args) != 1:
        raise ValueError("expected exactly one function of one argument")
    own = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, FORBIDDEN):
            raise ValueError(f"{type(node).__name__} is not allowed")
        if isinstance(node, ast.Attribute) and node.attr not in ALLOWED_METHODS:
            raise ValueError(f"attribute {node.attr!r} is not allowed")
        if isinstance(node, ast.Name | ast.arg) and (node.id if isinstance(node, ast.Name) else node.arg).startswith(
            "__"
        ):
            raise ValueError("names that start with two underscores are not allowed")
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in ALLOWED_NAMES | own:
            raise ValueError(f"name {node.id!r} is not defined")
    return tree.body[0].name
