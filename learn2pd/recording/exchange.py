"""Exchange of a recording's shards between nodes that share no folder, through any URL that fsspec knows.

Every node records into a folder of its own, which the processes of the node share. A process first makes its part of
the shards, from the first one on, and puts each one at the URL as soon as it is done. It then makes what nobody has put
there yet, from the last one on, so that the shards of a slow or lost node are made by the others. Two nodes may make
the same shard; its bytes are the same. Two processes with one folder make each shard once, since whoever is at a shard
holds its lock. Finally the leading process fetches what others have made.

The entry of a shard is put last. Whoever fetches a shard checks it against its entry, so that a transfer that was cut
off is no shard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import fsspec

from learn2pd.errors import UserError
from learn2pd.files import whole_file
from learn2pd.models.neighbours import told_in_one_line
from learn2pd.recording.schema import RECORDING, TABLES, entry_path, table_path
from learn2pd.recording.shard_claims import claimed, drop_damaged, one_by_one

KEY = "record.exchange"


class Exchange:
    """A place at a URL for the shards of one recording.

    Args:
        url: The URL of a folder, such as `s3://bucket/run` or `file:///mnt/run`. The package that fsspec needs for it
            must be installed.
        rank: The number of this process among all processes, from 0; the first one leads.
        processes: The number of all processes.

    Raises:
        UserError: fsspec does not know the URL, lacks a package for it, or cannot reach it.
    """

    def __init__(self, url: str, rank: int, processes: int) -> None:
        if "://" not in url:
            raise UserError(f"{KEY}={url!r}: expected a URL, such as s3://bucket/run or file:///mnt/run")
        self.url = url
        self.rank = rank
        self.processes = processes
        with self._told():
            self.files, root = fsspec.core.url_to_fs(url)
            self.root = root.rstrip("/")
            self.files.makedirs(self.root, exist_ok=True)

    def __str__(self) -> str:
        return f"{KEY}={self.url}"

    def put(self, name: str, content: bytes = b" ") -> None:
        """Write a small file."""
        with self._told():
            self.files.pipe_file(f"{self.root}/{name}", content)

    def has(self, name: str) -> bool:
        """Say whether a file is there now."""
        with self._told():
            self.files.invalidate_cache()
            return bool(self.files.exists(f"{self.root}/{name}"))

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.has(name):
            with self._told():
                self.files.rm_file(f"{self.root}/{name}")

    def open_recording(self, folder: Path) -> None:
        """Put the description of the recording at the URL, or make sure that the one there is the same.

        A file that holds only the beginning of the description is put again: its process was killed, or is at it now.

        Args:
            folder: The folder of this process, which holds the description.

        Raises:
            UserError: The URL holds the shards of another recording.
        """
        own = (folder / RECORDING).read_bytes()
        theirs = b""
        if self.has(RECORDING):
            with self._told():
                theirs = self.files.cat_file(f"{self.root}/{RECORDING}")
        if not own.startswith(theirs):
            raise UserError(f"{self} holds another recording: name an empty folder, or delete what is there")
        if theirs != own:
            self.put(RECORDING, own)

    def share(self, folder: Path, count: int, make: Callable[[int], None], check: Set[int]) -> Iterator[int]:
        """Make the shards that are missing, as `shard_claims.share` does.

        Args:
            folder: The folder of this process.
            count: Number of shards of the recording.
            make: Makes the shard of a number in the folder and writes its entry.
            check: Numbers of the shards in the folder that are checked first; a damaged one is made again.

        Yields:
            The number of each shard, as soon as it is at the URL, and in the first process also in its folder.
        """
        self.open_recording(folder)
        for number in check:
            with claimed(folder, number) as free:
                if free:
                    drop_damaged(folder, number)
        mine = range(self.rank % self.processes, count, self.processes)
        others = [number for number in reversed(range(count)) if number not in mine]
        elsewhere = []
        for number in one_by_one(
            (*mine, *others), lambda number: self._is_elsewhere(folder, number) or self._published(folder, number, make)
        ):
            if self.rank or entry_path(folder, number).exists():
                yield number
            else:
                elsewhere.append(number)
        yield from one_by_one(sorted(elsewhere), lambda number: self._fetched(folder, number, make))

    def _is_elsewhere(self, folder: Path, number: int) -> bool:
        """Say whether a shard is at the URL and not in the folder."""
        entry = entry_path(folder, number)
        return not entry.exists() and self.has(entry.name)

    def _published(self, folder: Path, number: int, make: Callable[[int], None]) -> bool:
        """Make a shard unless the folder has it, and put it at the URL unless it is there.

        Several processes of a node may have one folder. While another one of them is at the shard, this function
        returns False.
        """
        entry = entry_path(folder, number)
        with claimed(folder, number) as free:
            if free and not entry.exists():
                make(number)
            if free and not self.has(entry.name):
                self._put_shard(folder, number)
        return free

    def _fetched(self, folder: Path, number: int, make: Callable[[int], None]) -> bool:
        """Get a shard unless the folder has it; make it again where what the URL holds is damaged.

        While another process is at the shard, this function returns False.
        """
        entry = entry_path(folder, number)
        with claimed(folder, number) as free:
            if free and not entry.exists():
                self._get_shard(folder, number)
                drop_damaged(folder, number)
                if not entry.exists():
                    make(number)
                    self._put_shard(folder, number)
        return free

    def _put_shard(self, folder: Path, number: int) -> None:
        """Put the files of a shard at the URL, its entry last."""
        with self._told():
            for path in (*(table_path(folder, number, name) for name in TABLES), entry_path(folder, number)):
                self.files.put_file(str(path), f"{self.root}/{path.name}")

    def _get_shard(self, folder: Path, number: int) -> None:
        """Get the files of a shard, its entry last."""
        with self._told():
            for path in (*(table_path(folder, number, name) for name in TABLES), entry_path(folder, number)):
                with whole_file(path) as partial:
                    self.files.get_file(f"{self.root}/{path.name}", str(partial))

    def _told(self) -> contextlib.AbstractContextManager[None]:
        return told_in_one_line(f"{self} cannot be used", "expected the URL of a folder, in a form that fsspec knows")
