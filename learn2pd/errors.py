"""The one exception that means "the user can mend this": shown as a single line, never as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Any


class UserError(ValueError):
    """What was got, what is allowed, what to do."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'` where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}" if near else ""


def check_options(owner: str, options: Iterable[Any], known: Collection[str]) -> None:
    """Raises UserError for the first of `options` that `owner` does not take."""
    for option in options:
        if option not in known:
            raise UserError(
                f"{owner}: unknown option {option!r}{suggest(str(option), known)}; it takes {', '.join(known) or 'none'}"
            )


def check_at_least(least: int, name: str, value: int) -> int:
    """The value, where it is large enough.

    Raises:
        ValueError: it is less than `least`.
    """
    if value < least:
        raise ValueError(f"{name}={value}: expected at least {least}")
    return value


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
