"""Checks of the arguments of public functions against their annotations."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, ParamSpec, TypeVar

from learn2pd.errors import UserError
from learn2pd.kinds import alternatives, matches, plain, shown, type_name

P = ParamSpec("P")
R = TypeVar("R")


def check_argument(name: str, value: Any, kind: Any, advice: str = "") -> Any:
    """Check that an argument is of its annotated type.

    Args:
        name: The argument's name.
        value: The argument.
        kind: The annotation.
        advice: Words that follow the message, such as `; Method.from_names takes names`.

    Returns:
        The argument. A number of numpy becomes one of Python.

    Raises:
        UserError: The argument is of another type.
    """
    if not matches(value, kind):
        expected = " or ".join(type_name(each) for each in alternatives(kind) if each is not type(None))
        advice = f"; build it first, as {value.__name__}(...) does" if isinstance(value, type) else advice
        raise UserError(f"{name}={shown(value)}: expected {expected}, got {type(value).__name__}{advice}")
    return plain(value)


def parameter_kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a function's parameters, as far as the function states them and they exist at run time.

    Args:
        function: The function, or a class, whose constructor is asked.

    Returns:
        The types by the names of the parameters; none of them where one exists for the type checker alone, as may be
        in a user's own class.
    """
    try:
        return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, AttributeError, TypeError):
        return {}


def checked(
    but: Collection[str] = (), advice: Mapping[str, str] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function check its arguments by their annotations before it runs.

    Args:
        but: The parameters that the function checks itself.
        advice: Words that follow the message about a parameter.

    Returns:
        A decorator.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)
        kinds = functools.cache(lambda: parameter_kinds(function))

        def check(name: str, value: Any) -> Any:
            kind = Any if name in but else kinds().get(name, Any)
            return check_argument(name, value, kind, (advice or {}).get(name, ""))

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            ordered: Any = [check(name, value) for name, value in zip(names, args, strict=False)]
            named: Any = {name: check(name, value) for name, value in kwargs.items()}
            rest: Any = args[len(ordered) :]
            return function(*ordered, *rest, **named)

        return run

    return decorate
