from __future__ import annotations

import os

import pytest

from learn2pd.data.sandbox import CPU_SECONDS, Sandbox, SandboxRefused

HIDDEN = "[0 for {0} in []]\n    "  # makes a builtin's name local to the comprehension, so that it looks defined
ATTACKS = {
    "import": "import os\n    return os.getpid()",
    "from import": "from os import getpid\n    return getpid()",
    "dunder": "return x.__class__.__mro__",
    "allowed type, dunder": "return str.__subclasses__()",
    "format string": "return '{0.__class__}'.format(x)",
    "f-string attribute": "return f'{x.__class__}'",
    "class pattern": "match '':\n        case str(__class__=c):\n            return 1",
    "open": "return open('loot', 'w')",
    "hidden open": HIDDEN.format("open") + "y = open('{folder}/loot', 'w')\n    return 1",
    "hidden eval": HIDDEN.format("eval") + 'return eval(\'__import__("os").system("touch {folder}/loot")\')',
    "hidden exec": HIDDEN.format("exec") + "exec('import os; os.system(\"touch {folder}/loot\")')\n    return 1",
    "open hidden by an inner function": "def g():\n        open = 1\n        return open\n"
    "    open('{folder}/loot', 'w')\n    return 1",
    "open hidden by a lambda": "y = lambda open: 0\n    open('{folder}/loot', 'w')\n    return 1",
    "builtins by name": HIDDEN.format("__builtins__") + "return str(__builtins__)",
    "import hidden": HIDDEN.format("__import__") + "return str(__import__('os'))",
    "try": "try:\n        return 1\n    except* len:\n        return 2",
    "allocation": "y = 'x' * 10**10\n    return len(y)",
    "recursion": "g = lambda n: n\n    g = lambda n, h=x: [n] and h\n"
    "    def f(y):\n        return f(y)\n    return f(x)",
    "self reference": "y = []\n    y.append(y)\n    return y",
    "no JSON": "return set(x)",
    "a tuple, which JSON would make a list": "return (1, 2)",
    "a tuple inside": "return [{'a': [(1,)]}]",
    "keys that JSON would make texts": "return {1: 2}",
    "exception": "return x[99]",
}


@pytest.fixture(scope="module")
def sandbox():
    return Sandbox(True)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_in_an_error_and_leaves_nothing_behind(attack, sandbox, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = sandbox.call("def f(x):\n    " + ATTACKS[attack].replace("{folder}", str(tmp_path)), [[1, 2]])
    assert outcome.error
    assert outcome.results == []
    assert os.listdir(tmp_path) == []


def test_an_endless_loop_ends_at_the_time_limit(sandbox, monkeypatch):
    monkeypatch.setattr("learn2pd.data.sandbox.CPU_SECONDS", 1)
    assert CPU_SECONDS <= 5
    assert sandbox.call("def f(x):\n    while True:\n        x = x + 1", [1]).error


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x = 1",
        "def f():\n    return 1",
        "def f(a, b):\n    return 1",
        "def f(x):\n    return 1\nf(2)",
        "def f(x)",
        "((((",
        "(" * 5000,
        "-" * 50000,
        "\0",
        "\ud800",
    ],
    ids=lambda source: repr(source[:8]),
)
def test_anything_but_one_function_of_one_argument_is_rejected(source, sandbox):
    assert sandbox.call(source, [1]).error.startswith("rejected")


def test_a_correct_function_gives_its_results(sandbox):
    source = "def f(xs):\n    out = []\n    for x in xs:\n        if x % 2 == 0:\n"
    source += "            out.append(x * 2)\n    return sorted(out)"
    outcome = sandbox.call(source, [[4, 1, 2], []])
    assert (outcome.results, outcome.error) == ([[4, 8], []], "")


def test_a_variable_may_have_the_name_of_a_builtin(sandbox):
    assert sandbox.call("def f(x):\n    id = x + 1\n    sum = id * 2\n    return sum", [1]).results == [4]


def test_nothing_is_run_or_parsed_without_permission(tmp_path):
    with pytest.raises(SandboxRefused, match=r"data\.run_generated_code=true"):
        Sandbox(False).call("def f(x):\n    return x", [1])
