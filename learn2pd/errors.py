"""The exception for mistakes that the user can mend, and checks that raise it or help to word it.

The command line shows a `UserError` as a single line, never as a traceback.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Iterable, Iterator
from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend.

    Its message says what was got, what is allowed, and what to do. It is one line that every terminal can show: line
    breaks and other characters that nobody can see, which come from the user's files, are written as escapes.

    Args:
        message: the message.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(each if each.isprintable() else repr(each)[1:-1] for each in message))


def suggest(name: str, known: Iterable[str]) -> str:
    """Word a hint at the known name that is most like an unknown one.

    Args:
        name: the unknown name.
        known: the names that exist.

    Returns:
        `; did you mean 'x'`, to be appended to a message; empty where no known name is similar.
    """
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}" if near else ""


def check_options(owner: str, options: Iterable[Any], known: Collection[str]) -> None:
    """Check that a component takes every option it is given.

    Args:
        owner: the component's name, which begins the message.
        options: names of the options that were given.
        known: names of the options that the component takes.

    Raises:
        UserError: the component does not take one of the options; the message names the first such option.
    """
    for option in options:
        if option not in known:
            raise UserError(
                f"{owner}: unknown option {option!r}{suggest(str(option), known)}; "
                f"it takes {', '.join(known) or 'none'}"
            )


def check_at_least(least: int, name: str, value: int) -> int:
    """Check that a value is large enough.

    Args:
        least: the least value that is allowed.
        name: the value's name, for the message.
        value: the value to check.

    Returns:
        The value itself.

    Raises:
        ValueError: the value is less than `least`.
    """
    if value < least:
        raise ValueError(f"{name}={value}: expected at least {least}")
    return value


def check_probability(name: str, value: float) -> float:
    """Check that a value is a probability.

    Args:
        name: the value's name, for the message.
        value: the value to check.

    Returns:
        The value itself.

    Raises:
        ValueError: the value is not a number from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: expected a number from 0 to 1")
    return value


def check_not_negative(name: str, value: float) -> float:
    """Check that a value is 0 or more, and finite.

    Args:
        name: the value's name, for the message.
        value: the value to check.

    Returns:
        The value itself.

    Raises:
        ValueError: the value is negative or not finite.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value}: expected 0 or more, and finite")
    return value


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn a ValueError about a value of the user into a UserError with the same words."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of the error's class where the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
