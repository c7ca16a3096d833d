"""Errors of transformers, safetensors, huggingface_hub, jinja2, tokenizers and the file system, each told in one line.

Every call of the models' room into one of these libraries runs inside `told_in_one_line`, so that a user reads one line
with the real cause instead of a traceback of somebody else's code. `CAUSES` is the table: one row for each kind of
exception whose own text is missing, misleading or longer than a line.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jinja2
import torch
from huggingface_hub import errors as hub
from safetensors import SafetensorError

from learn2pd.errors import UserError

MOST_CHARACTERS = 300  # of a cause; transformers appends whole manuals to some of its messages


def _system(error: Any) -> str:
    """Return the system's words for the error number, and the file it is about."""
    if error.errno is None:
        return _one_line(error)
    name = "" if error.filename is None else f": {error.filename}"
    return f"{error.strerror or errno.errorcode.get(error.errno, error.errno)}{name}"


def _status(error: Any) -> str:
    """Return the answer of the hub, by its number."""
    return _one_line(error) if error.response is None else f"the hub answered {error.response.status_code}"


CAUSES: tuple[tuple[type[BaseException], Callable[[Any], str]], ...] = (
    (hub.OfflineModeIsEnabled, lambda error: "HF_HUB_OFFLINE is set, so the hub is not asked"),
    (
        hub.GatedRepoError,
        lambda error: "the repository is gated: accept its terms on the hub and log in with `hf auth login`",
    ),
    (
        hub.RepositoryNotFoundError,
        lambda error: "the hub has no such repository, or it is private and nobody is logged in (`hf auth login`)",
    ),
    (hub.RevisionNotFoundError, lambda error: "the repository has no such revision"),
    (hub.LocalEntryNotFoundError, lambda error: "the local cache of the hub does not hold it"),
    (hub.EntryNotFoundError, lambda error: "the repository has no such file"),
    (hub.HfHubHTTPError, _status),
    (hub.HFValidationError, lambda error: "this is neither a folder nor a name of the hub such as 'owner/name'"),
    (
        jinja2.TemplateSyntaxError,
        lambda error: f"syntax error in line {error.lineno}: {_words(error.message or type(error).__name__)}",
    ),
    (
        jinja2.UndefinedError,
        lambda error: (
            f"the template reads something that is not given: {_words(error.message or type(error).__name__)}"
        ),
    ),
    (jinja2.TemplateError, lambda error: f"the template refuses: {_words(error.message or type(error).__name__)}"),
    (json.JSONDecodeError, lambda error: f"this is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"),
    (
        UnicodeDecodeError,
        lambda error: f"this is not UTF-8 text: byte {error.object[error.start]:#04x} at {error.start}",
    ),
    (RecursionError, lambda error: "it is nested too deeply"),
    (torch.OutOfMemoryError, lambda error: "the device has too little free memory"),
    (MemoryError, lambda error: "this machine has too little free memory"),
    (SafetensorError, lambda error: f"not a whole safetensors file: {_one_line(error)}"),
    (KeyError, lambda error: f"the key {error.args[0]!r} is missing" if error.args else "a key is missing"),
    (OSError, _system),
)


def _words(text: object) -> str:
    return " ".join(str(text).split())[:MOST_CHARACTERS]


def _one_line(error: BaseException) -> str:
    """Return the first line of the error's own text. A text of one word gets the kind of the error in front of it."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = lines[0][:MOST_CHARACTERS].rstrip(" .:")
    return text if " " in text else f"{type(error).__name__}: {text}"


def cause(error: BaseException) -> str:
    """Say in one line what went wrong.

    Args:
        error: Whatever a neighbour raised.

    Returns:
        The text of the first row of `CAUSES` that fits, else the first line of the error's own text. An error that only
        wraps another one of the hub or of jinja2 gives the cause of that one.
    """
    inner: BaseException | None = error
    for _ in range(8):  # a chain that leads back to itself ends here
        if inner is None:
            break
        telling = isinstance(inner, (hub.HfHubHTTPError, hub.OfflineModeIsEnabled, jinja2.TemplateError))
        # old versions derive LocalEntryNotFoundError from HfHubHTTPError
        if telling and not isinstance(inner, hub.LocalEntryNotFoundError):
            error = inner
            break
        inner = inner.__cause__ or (None if inner.__suppress_context__ else inner.__context__)
    for kind, tell in CAUSES:
        if isinstance(error, kind):
            return " ".join(tell(error).split())
    return _one_line(error)


@contextmanager
def told_in_one_line(subject: str, expected: str = "") -> Iterator[None]:
    """Turn whatever is raised inside into a UserError of one line; a UserError passes as it is.

    Args:
        subject: What could not be done, as the start of the line: "path='x': config.json could not be read".
        expected: What is allowed or what to do, as the end of the line.

    Raises:
        UserError: F"{subject} ({cause}); {expected}".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the neighbours raise almost every kind
        raise UserError(f"{subject} ({cause(error)}){f'; {expected}' if expected else ''}") from error
