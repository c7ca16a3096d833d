"""Hub names and folders, for dLLMs, verifiers and adapters: whatever is wrong with their files becomes one line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers.utils import cached_file

from learn2pd.errors import UserError, first_line

ADAPTER_CONFIG = "adapter_config.json"
UNREADABLE = (OSError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError)


def shown_name(path: str) -> str:
    """A folder's last part, a hub name as it is."""
    return Path(path).name if Path(path).exists() else path


def check_folder(key: str, path: str, expected: str, file: str = "config.json") -> None:
    """Refuse a path that cannot be a hub's name and holds no `file`, before the hub is asked for it.

    Raises:
        UserError: saying what was `expected`.
    """
    folder = Path(path)
    looks_local = folder.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1 or path.split("/")[0] in ("checkpoints", "outputs")
    if looks_local and not (folder / file).is_file():
        state = f"holds no {file}" if folder.is_dir() else "does not exist"
        raise UserError(f"{key}={path!r}: the folder {state}; expected {expected}")


def read_object(key: str, path: str, file: str, expected: str, revision: str | None = None) -> dict[str, Any]:
    """The JSON object in a file of a hub name or folder.

    Raises:
        UserError: it cannot be read, or holds something else; `expected` ends that line.
    """
    try:
        fields = json.loads(Path(cached_file(path, file, revision=revision)).read_text(encoding="utf-8"))
    except (*UNREADABLE, ValueError) as error:
        raise UserError(f"{key}={path!r}: {file} could not be read ({first_line(error)})") from error
    if not isinstance(fields, dict):
        raise UserError(f"{key}={path!r}: {file} holds no JSON object; expected {expected}")
    return fields


def refuse_adapter(key: str, path: str, revision: str | None = None) -> None:
    """Refuse a model with an adapter beside it: transformers would take other weights than those, or pickled ones, without a word.

    Raises:
        UserError: saying where the adapter belongs.
    """
    try:
        cached_file(path, ADAPTER_CONFIG, revision=revision)
    except UNREADABLE:  # there is none
        return
    raise UserError(f"{key}={path!r} holds {ADAPTER_CONFIG} beside config.json: expected a model alone; a dLLM's adapter goes to model.adapter")


def refuse_tensors(subject: str, cause: str, **wrong: Iterable[str]) -> None:
    """Refuse names of tensors by kind: `missing`, `unknown`, `misshapen`.

    Raises:
        UserError: for the first kind that has any.
    """
    for kind, found in wrong.items():
        if names := sorted(found):
            raise UserError(f"{subject}: {len(names)} {kind} tensors, first {names[0]}; {cause}")
