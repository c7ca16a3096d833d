"""Where the files of the package lie, files that are written whole or not at all, and digests of files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SETTLED_SECONDS = 2.0  # some file systems count the time of a change no finer
SHIPPED = ("configs", "checkpoints", "data")  # folders of the repository that the package brings with it


def shipped_folder(name: str) -> Path:
    """Return a folder that the package brings with it.

    Args:
        name: one of `SHIPPED`.

    Returns:
        The folder inside an installed package; the folder of the repository where the package is used from there.
    """
    package = Path(__file__).resolve().parent
    installed = package / "shipped"
    return (installed if installed.is_dir() else package.parent) / name


def here_or_shipped(path: str) -> str:
    """Return the path of a file or folder of the user, or of one that the package brings with it.

    Args:
        path: a path, in which `~` is the home folder.

    Returns:
        The path itself, where something lies there. Otherwise a relative path such as `checkpoints/tiny-llada` becomes
        that of the package, where the package has it.
    """
    own = os.path.expanduser(path)
    first, *rest = Path(own).parts or ("",)
    if first in SHIPPED and ".." not in rest and not os.path.exists(own):
        shipped = shipped_folder(first).joinpath(*rest)
        if shipped.exists():
            return str(shipped)
    return own


def read_json(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in a file.

    Args:
        path: the file.

    Returns:
        The object; None where the file is missing or damaged, or holds something other than an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):  # the last one from absurd nesting
        return None
    return value if isinstance(value, dict) else None


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name under which a file is written. The file gets its own name once it is whole.

    Each process has a temporary name of its own, so processes that write the same file at the same time do not disturb
    each other. Whoever may read a new file may read this one, whatever mode its writer gives it: safetensors makes
    files that their owner alone can read.

    Args:
        path: the file, which is replaced if it exists. A failure leaves it as it was, and nothing beside it.

    Yields:
        The path to write to.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value to a JSON file, whole or not at all.

    Args:
        path: the file, which is replaced if it exists.
        value: anything that JSON can hold.
    """
    text = json.dumps(value, indent=2) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file's contents, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_known: dict[str, tuple[tuple[int, ...], str]] = {}  # state and digest of a file by its path


def sha256_once(path: Path) -> str:
    """Return the SHA-256 digest of a file's contents, and read a file that has not changed since only once.

    A file is taken to be unchanged where its place on the disk, its size and the times of its last changes are the
    same. A file that was changed in the last `SETTLED_SECONDS` is read every time, since it may change again without a
    new time.

    Args:
        path: the file.
    """
    status = path.stat()
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    name = os.path.realpath(path)
    if _known.get(name, ((), ""))[0] == state:
        return _known[name][1]
    digest = sha256(path)
    if status.st_ctime < time.time() - SETTLED_SECONDS:
        _known[name] = (state, digest)
    return digest
