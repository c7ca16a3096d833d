"""How processes share the shards of a recording, with nothing between them but the folder.

A shard is done when its entry (shard-00000.json) is there. Who makes one holds a lock on shard-00000.lock, which the system releases when
the process ends, however it ends; so a lost process costs its shard's work, which another does. The lock's file goes with the last hand on
it once the shard is done. What a lost process left half written has the name that the next one writes to.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path

from filelock import FileLock, Timeout

from learn2pd.recording.schema import entry_path, shard_name
from learn2pd.recording.writing import damage

log = logging.getLogger(__name__)
LOOK_AGAIN_S = 0.2  # at shards that others are making


def share(folder: Path, count: int, make: Callable[[int], None], check: Set[int]) -> Iterator[int]:
    """Make what is not there, until all shards are; gives the number of each as it is done.

    Args:
        make: makes a shard and writes its entry.
        check: shards to look into; one that is damaged is named, and made again.
    """
    pending: Iterable[int] = range(count)
    while True:
        left = []
        for number in pending:
            if _settled(folder, number, make, number in check):
                yield number
            else:
                left.append(number)
        if not left:
            return
        pending = left
        time.sleep(LOOK_AGAIN_S)


def _settled(folder: Path, number: int, make: Callable[[int], None], check: bool) -> bool:
    """Make a shard if need be; False while another process is at it."""
    entry = entry_path(folder, number)
    if entry.exists() and not (check and damage(folder, number)):
        return True
    with claimed(folder, number) as mine:
        if mine and check and entry.exists():
            wrong = damage(folder, number)
            if wrong:
                log.warning("%s is damaged (%s): it is recorded again", folder / shard_name(number), wrong)
                entry.unlink()
        if mine and not entry.exists():
            make(number)
    return mine


@contextlib.contextmanager
def claimed(folder: Path, number: int) -> Iterator[bool]:
    """Whether this process may make the shard: False while another one does."""
    path = folder / f"{shard_name(number)}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if entry_path(folder, number).exists():  # nobody who gets the lock from now on has anything to do
            path.unlink(missing_ok=True)
        lock.release()
