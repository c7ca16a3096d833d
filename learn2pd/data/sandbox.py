"""Run generated Python in a subprocess with limits, and only where that was allowed.

Two kinds of source are run: one function of one argument on given values (`call`), and a program against the tests of a
benchmark (`run_tests`), which may import a little of the standard library. Three fences stand around both:

1. The source is checked on its syntax tree before anything runs. It may name only what is on a list, read only
   attributes that are on a list, and use no statement that gets round the two.
2. The process is isolated (`-I -S`, empty environment, a temporary folder). Its builtins are those of the list and
   nothing more, because a name that is local in one scope is a builtin in another. What it imports are not modules but
   collections of their listed members.
3. CPU seconds, memory, file size and processes are limited by the operating system.

The tests of a benchmark are not fenced: they come with it, as the package does.
"""

from __future__ import annotations

import ast
import collections
import functools
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from learn2pd.errors import UserError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALLOWED_NAMES = _words("""
    abs all any bool enumerate float int len list map max min range reversed round set sorted str sum tuple zip
""")
ALLOWED_METHODS = _words("""
    append count extend find insert join lower pop replace reverse sort split startswith endswith strip title upper
""")
FORBIDDEN = (
    ast.Import,
    ast.ImportFrom,
    ast.ClassDef,
    ast.Global,
    ast.Nonlocal,
    ast.Try,
    ast.TryStar,
    ast.With,
    ast.Raise,
    ast.AsyncFunctionDef,
    ast.Await,
    ast.Match,  # a class pattern reads any attribute: case str(__class__=c)
)

PROGRAM_NAMES = ALLOWED_NAMES | _words("""
    bin bytes callable chr complex dict divmod filter format frozenset hash hex isinstance issubclass iter next oct ord
    pow repr slice ArithmeticError AssertionError AttributeError Exception IndexError KeyError LookupError
    NotImplementedError OverflowError RuntimeError StopIteration TypeError ValueError ZeroDivisionError
""")
REPLACED_NAMES = _words("print type")  # the runner puts functions of its own in place of these
PROGRAM_FORBIDDEN = (
    ast.ClassDef,
    ast.Global,
    ast.With,
    ast.AsyncFunctionDef,
    ast.AsyncFor,
    ast.AsyncWith,
    ast.Await,
    ast.Match,
)
MODULES = {  # the members of each module that neither evaluate text nor read attributes by name
    "bisect": _words("bisect bisect_left bisect_right insort insort_left insort_right"),
    "collections": _words("Counter OrderedDict defaultdict deque"),
    "copy": _words("copy deepcopy"),
    "fractions": _words("Fraction"),
    "functools": _words("cache cmp_to_key lru_cache reduce"),
    "hashlib": _words("md5 sha1 sha256"),
    "heapq": _words("heapify heappop heappush heappushpop heapreplace merge nlargest nsmallest"),
    "itertools": _words("""
        accumulate chain combinations combinations_with_replacement compress count cycle dropwhile filterfalse groupby
        islice pairwise permutations product repeat starmap takewhile tee zip_longest
    """),
    "math": frozenset(name for name in dir(math) if not name.startswith("_")),
    "operator": _words("add and_ eq floordiv ge gt itemgetter le lt mod mul ne neg or_ sub truediv xor"),
    "random": _words("choice randint random sample seed shuffle uniform"),
    "re": _words("""
        DOTALL I IGNORECASE M MULTILINE S compile escape findall finditer fullmatch match search split sub
    """),
    "statistics": _words("mean median mode multimode pstdev pvariance stdev variance"),
    "string": _words("ascii_letters ascii_lowercase ascii_uppercase digits hexdigits punctuation whitespace"),
    "typing": _words("""
        Any Callable Deque Dict FrozenSet Generator Iterable Iterator List Mapping Optional Sequence Set Tuple Union
    """),
}
VALUES = (
    str,
    bytes,
    list,
    tuple,
    dict,
    set,
    frozenset,
    int,
    float,
    complex,
    re.Pattern,
    re.Match,
    collections.deque,
    collections.Counter,
)
PROGRAM_ATTRIBUTES = (
    {name for value in VALUES for name in dir(value) if not name.startswith("_")}
    | {member for members in MODULES.values() for member in members}
    | {"digest", "hexdigest", "update", "numerator", "denominator"}
) - {"format", "format_map"}  # these two read attributes by name: "{0.__class__}"

CPU_SECONDS = 2
WALL_SECONDS = 5.0
MEMORY_BYTES = 512 * 2**20

LIMITS = """
import builtins, importlib, json, resource, sys, types
cpu, memory, names = json.loads(sys.argv[1])
limits = {resource.RLIMIT_CPU: cpu, resource.RLIMIT_AS: memory, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_NPROC: 0}
for limit, value in limits.items():
    resource.setrlimit(limit, (value, value))
job = json.loads(sys.stdin.read())
allowed = {name: getattr(builtins, name) for name in names}
"""
RUNNER = (
    LIMITS
    + """
scope = {"__builtins__": allowed}
try:
    exec(job["source"], scope)
    results = [scope[job["function"]](argument) for argument in job["arguments"]]
    text = json.dumps({"results": results})
    if len(text) >= 65536:
        text = json.dumps({"error": "the results are longer than 64 KiB"})
    elif json.loads(text)["results"] != results:  # JSON would make a list out of a tuple
        text = json.dumps({"error": "the results are not JSON values, such as a tuple"})
    sys.stdout.write(text)
except BaseException as error:
    sys.stdout.write(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""
)
TEST_RUNNER = (
    LIMITS
    + """
collected = {}
for module, members in job["modules"].items():
    real = importlib.import_module(module)
    collected[module] = types.SimpleNamespace(**{member: getattr(real, member) for member in members})

def collect(name, globals=None, locals=None, fromlist=(), level=0):
    if level or name not in collected:
        raise ImportError(f"the module {name!r} is not allowed")
    return collected[name]

def class_of(value):
    if isinstance(value, type):
        raise TypeError("the class of a class is not allowed")
    return type(value)

allowed |= {"__import__": collect, "type": class_of, "print": lambda *values, **options: None}
scope = {"__name__": "answer", "__builtins__": allowed}
output, sys.stdout = sys.stdout, None
error = ""
try:
    exec(job["source"], scope)
    tests = {"__name__": "tests"} | {name: scope[name] for name in job["helpers"]}
    exec(job["test"], tests)
    tests["check"](scope[job["function"]])
except BaseException as problem:
    error = f"{type(problem).__name__}: {problem}"[:200]
output.write(json.dumps({"error": error}))
"""
)


@dataclass(frozen=True)
class SandboxResult:
    """The result of a run in the sandbox.

    Attributes:
        results: The value that each call returned; empty where the run failed.
        error: The reason why the run failed; empty where it did not.
    """

    results: list[Any] = field(default_factory=list)
    error: str = ""


class SandboxRefused(UserError):
    """The error of a run that would execute generated code without permission."""


class Sandbox:
    """Runs generated code.

    Args:
        allowed: The explicit permission. False makes every run raise before it parses any source.
    """

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed

    def call(self, source: str, arguments: Sequence[Any]) -> SandboxResult:
        """Define a function and call it with each of several arguments.

        Args:
            source: A generated program that holds one function of one argument.
            arguments: The arguments, JSON values.

        Returns:
            The results, or the error. A result that JSON would change is an error, such as a tuple.

        Raises:
            SandboxRefused: Running generated code was not allowed.
        """
        self.check_allowed()
        return _call(source, json.dumps(list(arguments)))

    def run_tests(self, source: str, function: str, test: str, helpers: Sequence[str] = ()) -> SandboxResult:
        """Define what is in `source` and give one of its functions to the `check` that `test` defines.

        Args:
            source: A generated program.
            function: The name of the function under test.
            test: Python with a function `check(candidate)`, which raises where the candidate is wrong. It is trusted.
            helpers: The names of functions of the source that the test calls by their names.

        Returns:
            A result without an error where the tests passed.

        Raises:
            SandboxRefused: Running generated code was not allowed.
        """
        self.check_allowed()
        return _run_tests(source, function, test, tuple(helpers))

    def check_allowed(self) -> None:
        """Refuse to run generated code without permission.

        Raises:
            SandboxRefused: Running generated code was not allowed.
        """
        if not self.allowed:
            raise SandboxRefused(
                "judging programs runs generated Python: "
                "set data.run_generated_code=true to allow it, or leave the task out"
            )


@functools.lru_cache(maxsize=4096)  # methods that agree on an answer produce the same program many times
def _call(source: str, arguments: str) -> SandboxResult:
    try:
        function = _checked_function(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return SandboxResult(error=f"rejected: {error}")
    return _run(RUNNER, {"source": source, "function": function, "arguments": json.loads(arguments)}, ALLOWED_NAMES)


@functools.lru_cache(maxsize=4096)
def _run_tests(source: str, function: str, test: str, helpers: tuple[str, ...]) -> SandboxResult:
    try:
        _check_program(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return SandboxResult(error=f"rejected: {error}")
    job: dict[str, Any] = {"source": source, "function": function, "test": test, "helpers": helpers}
    job["modules"] = {module: sorted(members) for module, members in MODULES.items()}
    return _run(TEST_RUNNER, job, PROGRAM_NAMES)


def _run(runner: str, job: dict[str, Any], names: Collection[str]) -> SandboxResult:
    """Run a job in a process of its own and read its result."""
    limits = json.dumps([CPU_SECONDS, MEMORY_BYTES, sorted(names)])
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", "-c", runner, limits],
                input=json.dumps(job),
                capture_output=True,
                encoding="utf-8",
                timeout=WALL_SECONDS,
                env={},
                cwd=folder,
                check=False,
            )
            outcome = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            return SandboxResult(error=f"no result within {WALL_SECONDS:g} seconds")
        except ValueError:
            return SandboxResult(error="the process was stopped by its limits")
    return SandboxResult(outcome.get("results", []), outcome.get("error", ""))


def _checked_function(source: str) -> str:
    """Return the name of the single function that `source` defines.

    Raises:
        SyntaxError: The source is not Python.
        ValueError: The source is not a single function of one argument, or is outside the allowed subset of Python.
    """
    tree = ast.parse(source)
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef) or len(tree.body[0].args.args) != 1:
        raise ValueError("expected exactly one function of one argument")
    own = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    _check_tree(tree, FORBIDDEN, ALLOWED_METHODS, ALLOWED_NAMES | own)
    return tree.body[0].name


def _check_program(source: str) -> None:
    """Refuse a program that the sandbox may not run.

    Raises:
        SyntaxError: The source is not Python.
        ValueError: The source is outside the allowed subset of Python.
    """
    tree = ast.parse(source)
    own: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and any(alias.name not in MODULES for alias in node.names):
            raise ValueError(f"the import of {node.names[0].name!r} is not allowed")
        if isinstance(node, ast.ImportFrom):
            members = frozenset() if node.level else MODULES.get(node.module or "", frozenset())
            if any(alias.name not in members for alias in node.names):
                raise ValueError(f"the import from {node.module!r} is not allowed")
        if isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.alias):
            own.add(node.asname or node.name)
        elif isinstance(node, ast.FunctionDef) or (isinstance(node, ast.ExceptHandler) and node.name):
            own.add(str(node.name))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    _check_tree(tree, PROGRAM_FORBIDDEN, PROGRAM_ATTRIBUTES, PROGRAM_NAMES | REPLACED_NAMES | own)


def _check_tree(
    tree: ast.AST, forbidden: tuple[type[ast.AST], ...], attributes: Collection[str], names: Collection[str]
) -> None:
    """Refuse a tree that holds a statement, an attribute or a name that is not allowed.

    Raises:
        ValueError: The message names the first of them.
    """
    for node in ast.walk(tree):
        if isinstance(node, forbidden):
            raise ValueError(f"{type(node).__name__} is not allowed")
        if isinstance(node, ast.Attribute) and node.attr not in attributes:
            raise ValueError(f"attribute {node.attr!r} is not allowed")
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            raise ValueError(f"the attribute {node.attr!r} is not to be changed")
        for part in ("id", "arg", "name", "asname", "attr"):
            word = vars(node).get(part)
            if isinstance(word, str) and word.startswith("__"):
                raise ValueError("names that start with two underscores are not allowed")
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in names:
            raise ValueError(f"name {node.id!r} is not defined")
