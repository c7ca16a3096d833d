"""Random configurations: each one loads with the values that were written, or is refused in one line.

LEARN2PD_FUZZ sets the number of examples of each test.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from learn2pd.cli import main as cli
from learn2pd.cli.config import RunConfig, as_dict, load_config
from learn2pd.cli.help import written
from learn2pd.cli.options import own_options
from learn2pd.cli.values import keys_of
from learn2pd.errors import UserError
from learn2pd.kinds import alternatives, choices, matches

EXAMPLES = int(os.environ.get("LEARN2PD_FUZZ", "40"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
KEYS = [key for key in keys_of(RunConfig) if not key.is_section]
STRANGE = [
    *("", "~", "null", "yes", "010", "0x1f", "1e-3", "1e999", ".nan", "-.inf", "12:30", "2024-01-01", "1_0", "${seed}"),
    *(
        "${",
        "${oc.env:X}",
        "${decode}",
        "???",
        "[1",
        "{a: 1",
        "&a [*a]",
        "!!python/name:os",
        "a #b",
        "#",
        "- 1",
        "'",
        '"',
    ),
    *(
        "'x'",
        '"\\0"',
        "|",
        "> x",
        "%",
        "@",
        "`",
        "*x",
        "a: b",
        "<<",
        "=",
        "\t",
        "é\u2028",
        "🙂",
        "\x00",
        "\x85",
        "~x",
        "~/x",
    ),
    *(
        "9" * 5000,
        "[" * 300,
        "{" * 300,
        "{<<: {a: 1}}",
        "[null, true]",
        "{name: v}",
        "[{name: v, policy: fixed}]",
        "true",
    ),
]
TEXTS = st.one_of(st.sampled_from(STRANGE), st.text(max_size=20), st.integers().map(str), st.floats().map(repr))
NAMES = st.one_of(
    st.sampled_from([key.name for key in keys_of(RunConfig)]),
    st.sampled_from(["compare.methods[0].name", "data.tasks[0]", "filter_options.a.b", "decode", "compare.methods[0]"]),
    st.text("abz._[]0=${}\\ ", max_size=12),
)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(STRANGE)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def loaded(name: str | None, overrides: list[str]) -> Any:
    """The configuration, or None where it is refused in one line."""
    try:
        return load_config(name, overrides)
    except UserError as error:
        line = str(error)
        assert line.strip()
        assert "\n" not in line
        assert len(line) < 2000
        return None


def loaded_from(content: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.yaml"
        path.write_bytes(content)
        return loaded(str(path), [])


def check_types(config: Any) -> None:
    """Every value has the type that its field states, and is within its limits."""
    for key in keys_of(type(config)):
        value = config
        for part in key.name.split("."):
            value = getattr(value, part)
        assert matches(value, key.kind), (key.name, value)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float):
                assert math.isfinite(number)


@fuzz
@given(st.lists(st.tuples(NAMES, TEXTS), max_size=4))
def test_any_arguments_load_or_are_refused(arguments):
    config = loaded("tiny_filter", [f"{name}={text}" for name, text in arguments])
    if config is not None:
        check_types(config)


@fuzz
@example("${")
@example("???")
@given(PLAIN)
def test_any_plain_file_loads_or_is_refused(tree):
    config = loaded_from(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"))
    if config is not None:
        check_types(config)


@fuzz
@example({"model": {"\n": None}})
@given(st.dictionaries(st.sampled_from([entry.name for entry in dataclasses.fields(RunConfig)]), PLAIN, max_size=3))
def test_any_values_of_known_keys_load_or_are_refused(tree):
    config = loaded_from(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "replace"))
    if config is not None:
        check_types(config)


@fuzz
@given(st.one_of(st.binary(max_size=60), st.text("ab:-[]{},&*!|>'\"%@#\n ?~<1.$", max_size=60).map(str.encode)))
def test_any_bytes_load_or_are_refused(content):
    loaded_from(content)


@fuzz
@given(st.lists(st.tuples(NAMES, TEXTS), max_size=3), TEXTS)
def test_any_arguments_of_decode_are_sorted_out_or_refused(arguments, prompt):
    given_arguments = [*(f"{name}={text}" for name, text in arguments), f"prompt={prompt}"]
    try:
        options = own_options("decode", cli.read_arguments("decode", given_arguments).own)
    except UserError:
        return
    assert options.prompt == prompt


def values_of(key):
    """Values that a key takes, and that stay as they are."""
    limits = key.field.metadata
    least, most = limits["least"], limits["most"]
    kinds = alternatives(key.kind)
    options: list[Any] = [st.none()] if type(None) in kinds else []
    if bool in kinds:
        options.append(st.booleans())
    if int in kinds:
        options.append(st.integers(int(least), int(most)))
    if float in kinds:
        options.append(st.floats(least, most))
    if str in kinds and not limits["path"]:
        options.append(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
    if str in kinds and limits["path"]:
        options.append(st.text("abc/._- é#:", min_size=1, max_size=12))
    options += [st.sampled_from(choices(kind)) for kind in kinds if choices(kind)]
    return st.one_of(options) if options else st.nothing()


SETTABLE = [
    key for key in KEYS if key.name not in ("job", "name", "resume", "overwrite") and not values_of(key).is_empty
]


@fuzz
@given(st.data())
def test_every_value_that_is_written_is_the_value_that_is_loaded(data):
    """In both ways to write it: no value turns into another one without a word."""
    key = data.draw(st.sampled_from(SETTABLE))
    value = data.draw(values_of(key).filter(lambda value: "${" not in str(value) and value != "???"))
    *sections, name = key.name.split(".")
    tree: Any = {name: value}
    for section in reversed(sections):
        tree = {section: tree}
    from_file = loaded_from(yaml.safe_dump(tree, width=10**6).encode())  # PyYAML escapes what it would fold otherwise
    from_argument = loaded(None, [f"{key.name}={written(value)}"])
    for config in (from_file, from_argument):
        assert config is not None
        for part in key.name.split("."):
            config = getattr(config, part)
        assert config == value
        assert isinstance(config, bool) == isinstance(value, bool)


@pytest.mark.parametrize("name", ["tiny_filter", "tiny_study", "llada_compare"])
def test_a_configuration_that_is_written_down_loads_as_itself(name):
    config = load_config(name)
    content = yaml.safe_dump(as_dict(config), allow_unicode=True).encode()
    assert as_dict(loaded_from(content)) == as_dict(config)
