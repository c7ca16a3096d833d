"""Options: their help and limits, which stand with the field, and checks of values against Python annotations.

The configuration uses them for its keys, and the registry for the options of components.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

LISTS = (list, tuple, Sequence)
LONGEST_SHOWN = 80  # characters of a wrong value that a message shows


def option(
    default: Any,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    path: bool = False,
    verbatim: bool = False,
) -> Any:
    """Describe a key of a configuration, as the value of a field of its dataclass.

    Args:
        default: the default value. A list or dict is copied for every configuration.
        meaning: what the key is for, as the help of the command line words it.
        least: least allowed number; for a list, of each of its entries.
        most: largest allowed number.
        path: the value may be a path, in which `~` stands for the home folder.
        verbatim: the value is the user's own text: nothing in it is interpreted.

    Returns:
        A field for the dataclass.
    """
    described = {"meaning": meaning, "least": least, "most": most, "path": path, "verbatim": verbatim}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=described)
    return dataclasses.field(default=default, metadata=described)


def choices(kind: Any) -> tuple[Any, ...]:
    """Return the values that a `Literal` annotation allows; empty for every other annotation."""
    return typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the annotations that a union joins; for every other annotation, the annotation alone."""
    united = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if united else (kind,)


def plain(value: Any) -> Any:
    """Return a number of numpy as one of Python, also inside a list or tuple, and every other value unchanged."""
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    is_number = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if is_number else value


def matches(value: Any, kind: Any) -> bool:
    """Say whether a value is of an annotated type.

    Args:
        value: the value.
        kind: the annotation. A kind of annotation that nothing here knows accepts every value.

    Returns:
        True where the value fits. A whole number fits `float`; true and false fit neither `int` nor `float`. Numbers of
        numpy are as those of Python.
    """
    value = plain(value)
    if kind is Any:
        return True
    if len(alternatives(kind)) > 1:
        return any(matches(value, option) for option in alternatives(kind))
    if choices(kind):
        return value in choices(kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(kind) in LISTS:
        is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return is_list and _entries_match(value, typing.get_args(kind))
    try:
        return isinstance(value, typing.get_origin(kind) or kind)
    except TypeError:  # this kind cannot be asked about a value
        return True


def _entries_match(value: Sequence[Any], kinds: tuple[Any, ...]) -> bool:
    """Say whether the entries of a list are of the types that stand between the brackets of its annotation."""
    if len(kinds) > 1 and kinds[-1] is not Ellipsis:  # a tuple with a type for every place
        return len(value) == len(kinds) and all(map(matches, value, kinds))
    return not kinds or all(matches(entry, kinds[0]) for entry in value)


def check_kind(name: str, value: Any, kind: Any) -> Any:
    """Check that a value is of an annotated type.

    Args:
        name: the value's name, for the message.
        value: the value.
        kind: the annotation.

    Returns:
        The value. A number of numpy becomes one of Python.

    Raises:
        ValueError: the value is of another type.
    """
    if not matches(value, kind):
        raise ValueError(f"{name}={shown(value)}: expected {type_name(kind)}, got {type(value).__name__}")
    return plain(value)


def type_name(kind: Any) -> str:
    """Name an annotated type in a user's words, such as `a list of whole numbers` for a list of integers."""
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        dict: "a mapping",
        Mapping: "a mapping",
        list: "a list",
        Callable: "a function",
        Any: "any",
    }
    if len(alternatives(kind)) > 1:
        return " or ".join(type_name(option) for option in alternatives(kind))
    if choices(kind):
        return f"one of {', '.join(map(str, choices(kind)))}"
    if typing.get_origin(kind) in LISTS and typing.get_args(kind):
        return f"a list of {' and '.join(type_name(each) for each in typing.get_args(kind) if each is not Ellipsis)}"
    return names.get(typing.get_origin(kind) or kind, getattr(kind, "__name__", str(kind)))


def shown(value: Any) -> str:
    """Word a wrong value for a message of one line; a long one is cut."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def number_text(value: float) -> str:
    """Word a number as shortly as it stays exact, such as 1e+06 or 4294967295."""
    short = f"{value:g}"
    return short if float(short) == value else str(value)
