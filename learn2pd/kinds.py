"""Checks of values from YAML or a command line against Python annotations.

The configuration uses them for its keys, and the registry for the options of components.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

LISTS = (list, tuple, Sequence)


def matches(value: Any, kind: Any) -> bool:
    """Say whether a value from YAML is of an annotated type.

    Args:
        value: the value, as the YAML parser returns it.
        kind: the annotation. A kind of annotation that no configuration uses accepts every value.

    Returns:
        True where the value fits. A whole number fits `float`; true and false fit neither `int` nor `float`.
    """
    if kind is Any:
        return True
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(matches(value, option) for option in typing.get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(kind) in LISTS:
        return isinstance(value, list | tuple) and all(matches(entry, typing.get_args(kind)[0]) for entry in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict)
    return isinstance(value, kind) if isinstance(kind, type) else True


def check_kind(name: str, value: Any, kind: Any) -> Any:
    """Check that a value is of an annotated type.

    Args:
        name: the value's name, for the message.
        value: the value.
        kind: the annotation.

    Returns:
        The value itself.

    Raises:
        ValueError: the value is of another type.
    """
    if not matches(value, kind):
        raise ValueError(f"{name}={value!r}: expected {type_name(kind)}, got {type(value).__name__}")
    return value


def type_name(kind: Any) -> str:
    """Name an annotated type in a user's words, such as `a list of whole numbers` for a list of integers."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    names |= {dict: "an object", list: "a list", Any: "anything"}
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(type_name(option) for option in typing.get_args(kind))
    if typing.get_origin(kind) in LISTS:
        return f"a list of {type_name(typing.get_args(kind)[0])}"
    return names.get(kind, getattr(kind, "__name__", str(kind)))
