"""Files of dLLMs, verifiers and adapters, from a folder or a hub name. Everything wrong with them becomes one line.

A hub name is turned into the folder of its snapshot in the local cache once, by `local_folder`; everything after that
reads a folder. The hub is asked whether it answers before anything else is asked of it, so that a missing network costs
seconds.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
from safetensors import SafetensorError

from learn2pd.errors import UserError
from learn2pd.files import here_or_shipped
from learn2pd.models.neighbours import cause, told_in_one_line

ADAPTER_CONFIG = "adapter_config.json"
# SafetensorError is here for weights that are read lazily, long after their file was opened
UNREADABLE = (OSError, HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, SafetensorError)
# the files of a repository that are not weights, code or pictures
DESCRIPTIONS = ("*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken")
PROBE_SECONDS = 5.0
LFS_POINTER = b"version https://git-lfs.github.com"


def path_text(key: str, path: object) -> str:
    """Return a folder or a hub name as text, with `~` as the home folder, and the package's own folders by their names.

    Args:
        key: The argument's name, for messages.
        path: A text or a Path.

    Raises:
        UserError: It is neither, or it is empty.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UserError(
            f"{key}={path!r} is of type {type(path).__name__}: expected a folder or a hub name such as 'owner/name'"
        )
    if not text.strip() or "\0" in text:
        raise UserError(f"{key}={text!r}: expected a folder or a hub name such as 'owner/name'")
    return here_or_shipped(text)


def shown_name(path: str) -> str:
    """Return the last part of a folder, or a hub name as it is."""
    return Path(os.path.abspath(path)).name if Path(path).exists() else path


def check_folder(key: str, path: str | os.PathLike[str], expected: str, file: str = "config.json") -> None:
    """Refuse a path that cannot be a hub name and holds no `file`, before anybody asks the hub for it.

    Args:
        key: The argument's name, for messages.
        path: A folder or a hub name.
        expected: The words for the expected content, for messages.
        file: The name of the file that the folder must hold.

    Raises:
        UserError: The path is refused; the message says what was expected.
    """
    path = path_text(key, path)
    folder = Path(path)
    looks_local = (
        folder.exists()
        or path.startswith((".", "/", "~"))
        or path.count("/") != 1
        or path.split("/")[0] in ("checkpoints", "outputs")
    )
    if looks_local and not (folder / file).is_file():
        if folder.is_dir():
            state = f"the folder holds no {file}"
        elif folder.exists():
            state = "this is a file"
        else:
            state = "the folder does not exist"
        raise UserError(f"{key}={path!r}: {state}; expected {expected}")


def local_folder(
    key: str,
    path: str | os.PathLike[str],
    revision: str | None = None,
    patterns: Iterable[str] = DESCRIPTIONS,
    inner_folders: bool = False,
) -> Path:
    """Return the folder with the files of a hub name or folder; a folder is itself.

    Args:
        key: The argument's name, for messages.
        path: A folder, or a hub name whose files are downloaded, or taken from the local cache where the hub does not
            answer.
        revision: The revision of the hub repository.
        patterns: The files to download.
        inner_folders: True downloads files of the patterns from the folders of the repository too.

    Raises:
        UserError: The hub does not answer within seconds and the cache does not hold the repository, or the repository
            cannot be read.
    """
    path = path_text(key, path)
    if Path(path).is_dir():
        return Path(path)
    unreachable = why_unreachable()
    try:
        return Path(
            snapshot_download(
                path,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=None if inner_folders else ["*/*"],
                local_files_only=unreachable is not None,
            )
        )
    except Exception as error:  # huggingface_hub and its HTTP client raise almost every kind
        partial = getattr(error, "snapshot_path", None)
        if partial is not None:  # some file of the patterns was never downloaded; whoever needs it names it
            return Path(partial)
        advice = f"give a local folder instead, downloaded elsewhere with `hf download {path} --local-dir FOLDER`"
        if unreachable is not None and not isinstance(error, HFValidationError):
            known = f"revision {revision!r} of it" if revision else "it"
            raise UserError(
                f"{key}={path!r}: no folder has this name, {constants.ENDPOINT} could not be reached ({unreachable}), "
                f"and the hub's local cache does not hold {known}; {advice}"
            ) from error
        at = f" at revision {revision!r}" if revision else ""
        raise UserError(
            f"{key}={path!r}{at} could not be read from {constants.ENDPOINT} ({cause(error)}); "
            f"check the name, or {advice}"
        ) from error


def why_unreachable(seconds: float | None = None) -> str | None:
    """Say why the hub does not answer, or return None where it does.

    A thread asks the hub, since a name server may take a long time.

    Args:
        seconds: The time that the hub has for its answer; None gives it `PROBE_SECONDS`.
    """
    patience = PROBE_SECONDS if seconds is None else seconds
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=patience)
            answer.append(None)
        except Exception as error:  # noqa: BLE001  of two HTTP clients, by the version of huggingface_hub
            answer.append(cause(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience + 1)
    return answer[0] if answer else f"no answer within {patience + 1:.0f} seconds"


def check_file(subject: str, file: Path) -> None:
    """Refuse a file that is empty, or that is a pointer to a file which was not downloaded.

    Args:
        subject: The thing to which the file belongs, for messages.
        file: The file.

    Raises:
        UserError: The file is refused; the message names it and says what to do.
    """
    with told_in_one_line(f"{subject}: {file.name} could not be read"), file.open("rb") as opened:
        start = opened.read(len(LFS_POINTER))
    if not start:
        raise UserError(f"{subject}: {file.name} is empty (0 bytes); download it again")
    if start == LFS_POINTER:
        raise UserError(
            f"{subject}: {file.name} is a Git LFS pointer and not the file itself; run `git lfs pull` in the repository"
        )


def read_object(
    key: str,
    path: str | os.PathLike[str],
    file: str,
    expected: str,
    revision: str | None = None,
    patterns: Iterable[str] = DESCRIPTIONS,
) -> dict[str, Any]:
    """Read the JSON object in a file of a folder or a hub name.

    Args:
        key: The argument's name, for messages.
        path: A folder or a hub name.
        file: The name of the file.
        expected: The words for the expected content, for messages.
        revision: The revision of the hub repository.
        patterns: The files to download.

    Returns:
        The fields of the object.

    Raises:
        UserError: The file cannot be read, or does not hold an object.
    """
    described = local_folder(key, path, revision, patterns) / file
    subject = f"{key}={os.fspath(path)!r}"
    check_file(subject, described)
    with told_in_one_line(f"{subject}: {file} could not be read", f"expected {expected}"):
        fields = json.loads(described.read_text(encoding="utf-8-sig"))
    if not isinstance(fields, dict):
        raise UserError(f"{subject}: {file} holds no JSON object; expected {expected}")
    return fields


def refuse_adapter(key: str, path: str | os.PathLike[str], revision: str | None = None) -> None:
    """Refuse a model with an adapter beside it.

    Without this check, transformers would silently load other weights than the model's, or pickled ones.

    Args:
        key: The argument's name, for messages.
        path: A folder or a hub name.
        revision: The revision of the hub repository.

    Raises:
        UserError: An adapter lies beside the model; the message says where it belongs.
    """
    if (local_folder(key, path, revision) / ADAPTER_CONFIG).exists():
        raise UserError(
            f"{key}={os.fspath(path)!r} holds {ADAPTER_CONFIG} beside config.json: expected a model alone; "
            "a dLLM's adapter is given apart, as adapter=FOLDER"
        )


def refuse_tensors(subject: str, why: str, **wrong: Iterable[str]) -> None:
    """Refuse a set of weights if the names of wrong tensors are given.

    Args:
        subject: The thing to which the tensors belong, for messages.
        why: The end of the message.
        wrong: The names of wrong tensors by kind: `missing`, `unknown`, `misshapen`.

    Raises:
        UserError: A kind has a tensor; the message names the first one.
    """
    for kind, tensors in wrong.items():
        if names := sorted(tensors):
            raise UserError(f"{subject}: {len(names)} {kind} tensors, first {names[0]}; {why}")
