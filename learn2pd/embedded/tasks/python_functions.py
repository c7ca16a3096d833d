"""Task `code`: a one-line specification becomes a short Python function over a list, a string or a number.

Some choices are free but must agree within an answer: the name of the function and of every variable, and the
implementation (one expression, one assignment for each step, a loop). Answers are judged by running them on generated
cases, which needs the explicit permission that `data.sandbox` asks for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from learn2pd.data.sandbox import Sandbox
from learn2pd.data.tasks.base import Verdict, weighted

FUNCTIONS = {"f": 3.0, "solve": 3.0, "run": 2.0, "main": 2.0}
PARAMETERS = {"list": ["xs", "nums", "values"], "text": ["s", "text", "word"], "number": ["n", "a", "value"]}
ELEMENTS = ["x", "v", "e"]
RESULTS = ["out", "res", "acc"]
CASES = 8

# operation -> (wordings, expression); {e} is the element or the expression so far, {k} is the operation's number
FILTERS = {
    "even": (["keep the even numbers", "take the even ones"], "{e} % 2 == 0"),
    "odd": (["keep the odd numbers", "take the odd ones"], "{e} % 2 == 1"),
    "above": (["keep those above {k}", "take numbers over {k}"], "{e} > {k}"),
    "below": (["keep those below {k}", "take numbers under {k}"], "{e} < {k}"),
    "not": (["drop every {k}", "remove each {k}"], "{e} != {k}"),
}
MAPS = {
    "double": (["double each", "multiply each by 2"], "{e} * 2"),
    "square": (["square each", "take the squares"], "{e} ** 2"),
    "add": (["add {k} to each", "raise each by {k}"], "{e} + {k}"),
    "subtract": (["subtract {k} from each", "lower each by {k}"], "{e} - {k}"),
    "negate": (["negate each", "flip each sign"], "-{e}"),
}
FINALS = {
    "list": (["return the list", "return them"], "{e}"),
    "sum": (["return the sum", "return their total"], "sum({e})"),
    "len": (["return the count", "return how many there are"], "len({e})"),
    "max": (["return the largest", "return the maximum"], "max({e})"),
    "min": (["return the smallest", "return the minimum"], "min({e})"),
    "sorted": (["return them sorted", "return the sorted list"], "sorted({e})"),
    "first": (["return the first {k}"], "{e}[:{k}]"),
}
TEXTS = {
    "upper": (["make it upper case", "put it in capitals"], "{e}.upper()"),
    "lower": (["make it lower case"], "{e}.lower()"),
    "reverse": (["reverse it", "turn it around"], "{e}[::-1]"),
    "first": (["keep the first {k} characters"], "{e}[:{k}]"),
    "last": (["keep the last {k} characters"], "{e}[-{k}:]"),
    "spaces": (["remove the spaces", "drop all spaces"], '{e}.replace(" ", "")'),
    "strip": (["trim it", "strip the ends"], "{e}.strip()"),
}
NUMBERS = {
    "add": (["add {k}"], "{e} + {k}"),
    "subtract": (["subtract {k}", "take away {k}"], "{e} - {k}"),
    "multiply": (["multiply by {k}"], "{e} * {k}"),
    "mod": (["take the remainder by {k}"], "{e} % {k}"),
    "square": (["square it"], "{e} ** 2"),
    "divide": (["divide by {k} rounding down"], "{e} // {k}"),
}
Step = list[Any]  # [operation, number or None], a JSON value


def _fill(template: str, step: Step, expression: str) -> str:
    return template.replace("{e}", expression).replace("{k}", str(step[1]))


def _draw_step(rng: random.Random, operations: dict[str, Any], smallest: int = 2, largest: int = 9) -> Step:
    operation = rng.choice(list(operations))
    takes_number = any("{k}" in wording for wording in operations[operation][0])
    return [operation, rng.randint(smallest, largest) if takes_number else None]


class CodeTask:
    """Short functions that are to be written from a specification.

    Args:
        sandbox: The sandbox that runs the candidate functions. Without permission it refuses every check itself.
    """

    name = "code"

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def draw(self, rng: random.Random) -> tuple[dict[str, Any], str]:
        """Draw the facts of a problem: the kind of the argument, and the operations."""
        kind = weighted(rng, {"list": 4, "text": 3, "number": 3})
        if kind == "list":
            steps = [
                _draw_step(rng, FILTERS) if rng.random() < 0.65 else ["all", None],
                _draw_step(rng, MAPS) if rng.random() < 0.65 else ["same", None],
                _draw_step(rng, FINALS, 2, 4),
            ]
            if steps[0][0] == "all" and steps[1][0] == "same" and steps[2][0] == "list":
                steps[1] = _draw_step(rng, MAPS)
        else:
            operations: dict[str, Any] = TEXTS if kind == "text" else NUMBERS
            steps = [_draw_step(rng, operations) for _ in range(rng.randint(1, 3))]
        facts = {"kind": kind, "steps": steps}
        return facts, f"{kind}:" + "-".join(str(step[0]) for step in steps) if len(steps) > 1 else ""

    @staticmethod
    def cases(facts: dict[str, Any]) -> list[Any]:
        """The arguments that a function is tried on; they depend on the specification alone."""
        kind = facts["kind"]
        rng = random.Random(str(facts))
        if kind == "number":
            return [rng.randint(-9, 30) for _ in range(CASES)]
        if kind == "text":
            return ["".join(rng.choice("abcDEF  xyZ") for _ in range(rng.randint(4, 14))) for _ in range(CASES)]
        # 12 and 13 pass most filters, so that max and min seldom meet an empty list.
        return [[*(rng.randint(-9, 15) for _ in range(rng.randint(3, 8))), 12, 13] for _ in range(CASES)]

    def prompt(self, facts: dict[str, Any], rng: random.Random) -> str:
        """Word a specification at random."""
        kind = facts["kind"]
        subject = {"list": "a list of numbers", "text": "a string", "number": "a number"}[kind]
        if kind == "list":
            tables = (FILTERS, MAPS, FINALS)
            parts = [(table, step) for table, step in zip(tables, facts["steps"], strict=True) if step[0] in table]
        else:
            parts = [(TEXTS if kind == "text" else NUMBERS, step) for step in facts["steps"]]
        words = [rng.choice(table[step[0]][0]).format(k=step[1]) for table, step in parts]
        opening = rng.choice(["Write a function for", "Python function for"])
        return f"{opening} {subject}: " + ", then ".join(words) + "."

    def answer(self, facts: dict[str, Any], rng: random.Random) -> str:
        """Write one of the right functions at random."""
        kind = facts["kind"]
        parameter = rng.choice(PARAMETERS[kind])
        if kind == "list":
            body = self._list_body(facts["steps"], parameter, rng)
        else:
            body = self._chain_body(facts["steps"], TEXTS if kind == "text" else NUMBERS, parameter, rng)
        return f"def {weighted(rng, FUNCTIONS)}({parameter}):\n" + "\n".join(f"    {line}" for line in body)

    @staticmethod
    def _list_body(steps: list[Step], parameter: str, rng: random.Random) -> list[str]:
        keep, change, final = steps
        element, result = rng.choice(ELEMENTS), rng.choice(RESULTS)
        condition = _fill(FILTERS[keep[0]][1], keep, element) if keep[0] in FILTERS else ""
        value = _fill(MAPS[change[0]][1], change, element) if change[0] in MAPS else element
        finish = lambda listed: _fill(FINALS[final[0]][1], final, listed)  # noqa: E731
        comprehension = f"[{value} for {element} in {parameter}{' if ' + condition if condition else ''}]"
        if not condition and value == element:
            comprehension = parameter
        style = weighted(rng, {"expression": 4, "assigned": 3, "loop": 3})
        if style == "expression" or comprehension == parameter:
            return [f"return {finish(comprehension)}"]
        if style == "assigned":
            return [f"{result} = {comprehension}", f"return {finish(result)}"]
        inner = [f"if {condition}:", f"    {result}.append({value})"] if condition else [f"{result}.append({value})"]
        return [
            f"{result} = []",
            f"for {element} in {parameter}:",
            *(f"    {line}" for line in inner),
            f"return {finish(result)}",
        ]

    @staticmethod
    def _chain_body(steps: list[Step], operations: dict[str, Any], parameter: str, rng: random.Random) -> list[str]:
        style = weighted(rng, {"expression": 4, "same name": 3, "new name": 3})
        if style == "expression":
            expression = parameter
            for index, step in enumerate(steps):
                wrapped = f"({expression})" if index and operations is NUMBERS else expression
                expression = _fill(operations[step[0]][1], step, wrapped)
            return [f"return {expression}"]
        result = parameter if style == "same name" else rng.choice(RESULTS)
        lines = []
        source = parameter
        for step in steps:
            lines.append(f"{result} = {_fill(operations[step[0]][1], step, source)}")
            source = result
        return [*lines, f"return {result}"]

    def facts(self, prompt: str, answer: str) -> dict[str, Any]:
        """Refuse problems that the task did not generate.

        Raises:
            ValueError: Always. Only the generator of a problem knows what makes an answer right.
        """
        raise ValueError("the task 'code' judges the problems of its own generator only")

    def check(self, facts: dict[str, Any], text: str) -> Verdict:
        """Whether a function returns the right values on all cases, run in the sandbox.

        Values are compared as Python compares them: a tuple is no list, and 4.0 equals 4.
        """
        meanings: dict[str, Callable[..., Any]] = {"number": _number_result, "text": _text_result, "list": _list_result}
        meaning = meanings[facts["kind"]]
        expected = [(case, meaning(facts["steps"], case)) for case in self.cases(facts)]
        usable = [(case, value) for case, value in expected if value is not None]
        outcome = self.sandbox.call(text.strip(), [case for case, _ in usable])
        if outcome.error:
            return Verdict(False, outcome.error)
        for (case, value), result in zip(usable, outcome.results, strict=True):
            if result != value:
                return Verdict(False, f"returns {repr(result)[:80]} for {case!r}, expected {value!r}")
        return Verdict(True)


# The meaning of each operation, written apart from the templates above so that a wrong template cannot certify itself.


def _number_result(steps: list[Step], value: int) -> int:
    for operation, k in steps:
        value = {
            "add": lambda v, k: v + k,
            "subtract": lambda v, k: v - k,
            "multiply": lambda v, k: v * k,
            "mod": lambda v, k: v % k,
            "square": lambda v, k: v * v,
            "divide": lambda v, k: v // k,
        }[operation](value, k)
    return value


def _text_result(steps: list[Step], value: str) -> str:
    for operation, k in steps:
        value = {
            "upper": lambda v, k: v.upper(),
            "lower": lambda v, k: v.lower(),
            "reverse": lambda v, k: "".join(reversed(v)),
            "first": lambda v, k: v[0:k],
            "last": lambda v, k: v[max(len(v) - k, 0) :],
            "spaces": lambda v, k: "".join(c for c in v if c != " "),
            "strip": lambda v, k: v.strip(),
        }[operation](value, k)
    return value


def _list_result(steps: list[Step], values: list[int]) -> Any:
    """The result, or None where the specification itself has none, as for the largest number of an empty list."""
    (keep, limit), (change, amount), (final, count) = steps
    tests = {
        "all": lambda v: True,
        "even": lambda v: v % 2 == 0,
        "odd": lambda v: v % 2 != 0,
        "above": lambda v: v > limit,
        "below": lambda v: v < limit,
        "not": lambda v: v != limit,
    }
    changes = {
        "same": lambda v: v,
        "double": lambda v: v + v,
        "square": lambda v: v * v,
        "add": lambda v: v + amount,
        "subtract": lambda v: v - amount,
        "negate": lambda v: 0 - v,
    }
    result = [changes[change](value) for value in values if tests[keep](value)]
    if final in ("max", "min") and not result:
        return None
    finals: dict[str, Callable[[list[int]], Any]] = {
        "list": list,
        "sum": sum,
        "len": len,
        "max": max,
        "min": min,
        "sorted": sorted,
        "first": lambda r: r[:count],
    }
    return finals[final](result)
