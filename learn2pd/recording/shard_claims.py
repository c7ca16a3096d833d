"""Sharing of a recording's shards among processes that have only the folder in common.

A shard is done when its entry (shard-00000.json) exists. The process that makes a shard holds a lock on the file
shard-00000.lock. The operating system releases the lock when the process ends, in whatever way it ends. A process that
is lost therefore costs the work on one shard, and another process makes that shard again.

When a shard is done, every process that has held its lock deletes the lock file. A lost process may leave half-written
tables behind; their names are the same in every process, so the next process that makes the shard overwrites them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path

from filelock import FileLock, Timeout

from learn2pd.errors import UserError
from learn2pd.recording.schema import entry_path, shard_name
from learn2pd.recording.writing import damage

log = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
LOOK_AGAIN_S = 0.2  # seconds between two looks at the shards that other processes are making


def share(folder: Path, count: int, make: Callable[[int], None], check: Set[int]) -> Iterator[int]:
    """Make the shards that are missing, and return when all shards exist.

    Args:
        folder: the folder of the recording.
        count: number of shards of the recording.
        make: makes the shard of a number and writes its entry.
        check: numbers of the shards whose files are checked; a damaged shard is named in the log and made again.

    Yields:
        The number of each shard, as soon as it is done.
    """
    yield from one_by_one(range(count), lambda number: _settled(folder, number, make, number in check))


def one_by_one(numbers: Iterable[int], settled: Callable[[int], bool]) -> Iterator[int]:
    """Settle shards, and come back to those that other processes are making until none is left.

    Args:
        numbers: numbers of the shards.
        settled: settles the shard of a number; returns False while another process is making it.

    Yields:
        The number of each shard, as soon as it is settled.
    """
    pending = numbers
    while True:
        left = []
        for number in pending:
            if settled(number):
                yield number
            else:
                left.append(number)
        if not left:
            return
        pending = left
        time.sleep(LOOK_AGAIN_S)


def _settled(folder: Path, number: int, make: Callable[[int], None], check: bool) -> bool:
    """Make a shard unless it exists; return False while another process is making it."""
    entry = entry_path(folder, number)
    if entry.exists() and not (check and damage(folder, number)):
        return True
    with claimed(folder, number) as mine:
        if mine and check and entry.exists():
            drop_damaged(folder, number)
        if mine and not entry.exists():
            make(number)
    return mine


def drop_damaged(folder: Path, number: int) -> None:
    """Delete the entry of a shard whose files are damaged, and name the shard in the log.

    Args:
        folder: the folder of the recording.
        number: number of the shard, from 0.
    """
    wrong = damage(folder, number)
    if wrong:
        log.warning("%s is damaged (%s): it is recorded again", folder / shard_name(number), wrong)
        entry_path(folder, number).unlink(missing_ok=True)


@contextlib.contextmanager
def claimed(folder: Path, number: int) -> Iterator[bool]:
    """Hold the lock of a shard, unless another process holds it.

    Args:
        folder: the folder of the recording.
        number: number of the shard, from 0.

    Yields:
        Whether this process holds the lock and may make the shard.

    Raises:
        UserError: the file system has no locks.
    """
    path = folder / f"{shard_name(number)}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{folder}: this file system has no locks ({error}), which the processes need to share the shards: "
            "choose an output_dir on another one, or mount it with locks"
        ) from error
    try:
        yield True
    finally:
        if entry_path(folder, number).exists():  # a process that gets the lock later has nothing left to do
            path.unlink(missing_ok=True)
        lock.release()
