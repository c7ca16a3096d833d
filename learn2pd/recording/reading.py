"""Reading of finished recordings.

`Recording.load` checks that a recording is complete and that every checksum is right, which reads every file once in a
process. The rows are read from the disk when they are asked for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets

from learn2pd.errors import UserError
from learn2pd.files import read_json
from learn2pd.recording.schema import (
    MANIFEST,
    features_of,
    groups_of,
    read_recording,
    shard_count,
    shard_name,
    table_path,
    wide_of,
)
from learn2pd.recording.writing import damage, entries

DERIVED = ("length", "reference", "prompt")  # columns of a state that come from the row of its prompt
AGAIN = "run the stage 'record' again"


@dataclass(frozen=True)
class Recording:
    """A finished recording.

    Its `len` is the number of its shards. Its tables are mapped into memory and are not read into it as a whole.
    """

    folder: Path
    description: dict[str, Any]  # the object in recording.json: what the recording was made with

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """Open a recording and check every file of it.

        A process reads a file once for this, unless the file changes.

        Args:
            folder: the folder of the recording.

        Returns:
            The recording.

        Raises:
            UserError: the recording is not complete, or a shard or the manifest is damaged; the message names the file
                and says what to do.
        """
        folder = Path(folder)
        described = read_recording(folder)
        existing = entries(folder, shard_count(described))
        for number in range(len(existing)):
            wrong = damage(folder, number)
            if wrong:
                raise UserError(
                    f"{folder / shard_name(number)} is damaged ({wrong}): {AGAIN}, which replaces this shard"
                )
        listed = (read_json(folder / MANIFEST) or {}).get("shards")
        if listed != existing:
            named = [entry["name"] for entry, other in zip(existing, listed or (), strict=False) if entry != other]
            state = "is missing or damaged"
            if listed:
                state = f"disagrees with the shards{f' about {named[0]}' if named else ''}"
            raise UserError(f"{folder / MANIFEST} {state}: {AGAIN}, which writes it anew")
        return cls(folder, described)

    def __len__(self) -> int:
        return shard_count(self.description)

    @property
    def gen_length(self) -> int:
        """Length of the canvas, in tokens."""
        return int(self.description["gen_length"])

    @functools.cached_property
    def states(self) -> Dataset:
        """The states of all shards, in the order of the prompts and of their steps."""
        return concatenate_datasets([self.table(shard, "states") for shard in range(len(self))])

    @functools.cached_property
    def references(self) -> Dataset:
        """The references of all shards: one row for each prompt, in the order of the prompts."""
        return concatenate_datasets([self.table(shard, "references") for shard in range(len(self))])

    def table(self, shard: int, name: str) -> Dataset:
        """Open one table of one shard, which then stays open.

        Args:
            shard: number of the shard, from 0.
            name: `states` or `references`.

        Raises:
            UserError: the file has other columns than this version writes.
        """
        if (shard, name) not in self._open:
            self._open[shard, name] = self._opened(shard, name)
        return self._open[shard, name]

    def _opened(self, shard: int, name: str) -> Dataset:
        path = table_path(self.folder, shard, name)
        table = Dataset.from_file(str(path))
        if table.features != features_of(name, self.gen_length, groups_of(self.description), wide_of(self.description)):
            raise UserError(
                f"{path}: its columns are not those of schema {self.description['schema']}: "
                f"delete {self.folder} and {AGAIN}"
            )
        return table

    def columns(self, shard: int, names: Sequence[str], split: str) -> dict[str, torch.Tensor]:
        """Read columns of the states of one shard that belong to a split.

        Three columns are derived from the prompt that a state belongs to: `length` ([N] long) is the number of answer
        tokens of its reference, `reference` ([N, G] long) holds the tokens of its reference, and `prompt` ([N] long) is
        its number in the recording.

        Args:
            shard: number of the shard, from 0.
            names: names of numeric columns of the states, which are returned as they are stored ([N] or [N, G]), and of
                derived columns.
            split: `train`, `validation` or `test`.

        Returns:
            The columns by their names, each with one row for each of the N states.
        """
        states = self.table(shard, "states").data  # of Arrow: every selection of `datasets` costs milliseconds
        rows = np.flatnonzero(np.asarray(states.column("split")) == split)
        columns = {
            name: torch.from_numpy(self._values(states.column(name))[rows]) for name in names if name not in DERIVED
        }
        if set(names) & set(DERIVED):
            of_prompt = self.table(shard, "references").data
            number = {name: place for place, name in enumerate(of_prompt.column("prompt_id").to_pylist())}
            owners = np.asarray(states.column("prompt_id"))[rows]
            places = np.array([number[owner] for owner in owners], dtype=np.int64)
            derived = {"length": "length", "reference": "tokens"}
            columns |= {
                name: torch.from_numpy(self._values(of_prompt.column(derived[name]))[places]).long()
                for name in names
                if name in derived
            }
            columns["prompt"] = torch.from_numpy(places) + shard * int(self.description["shard_prompts"])
        return {name: columns[name] for name in names}

    def references_of(self, prompt_ids: Sequence[str]) -> Dataset:
        """Return the references of some prompts.

        Args:
            prompt_ids: the identifiers of the prompts.

        Returns:
            One row for each prompt, in the order of `prompt_ids`.

        Raises:
            UserError: one of the prompts was not recorded.
        """
        missing = [name for name in prompt_ids if name not in self._places]
        if missing:
            raise UserError(f"{self.folder}: there is no prompt {missing[0]!r} in this recording")
        return self.references.select([self._places[name] for name in prompt_ids])

    def states_of(self, prompt_ids: Sequence[str]) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the recorded states of some prompts.

        Args:
            prompt_ids: the identifiers of the prompts.

        Returns:
            [N] long, the place of each state's prompt in `prompt_ids`; and all columns of the states, [N] or [N, G]
            each, texts as lists. The states are in the order of `prompt_ids` and of their steps.
        """
        ranges = [self._rows.get(name, range(0)) for name in prompt_ids]
        counts = torch.tensor([len(rows) for rows in ranges], dtype=torch.long)
        rows = [row for rows in ranges for row in rows]
        stored = self.states.with_format("arrow").select(rows)[:]
        columns = {
            name: stored[name].to_pylist()
            if pa.types.is_string(stored[name].type)
            else torch.from_numpy(np.array(self._values(stored[name])))
            for name in stored.column_names
        }
        return torch.arange(len(counts)).repeat_interleave(counts), columns

    @functools.cached_property
    def _rows(self) -> dict[str, range]:
        """The rows of every prompt's states, which stand together."""
        owners = list(self.states["prompt_id"])
        first = [row for row, owner in enumerate(owners) if row == 0 or owners[row - 1] != owner]
        return {owners[row]: range(row, stop) for row, stop in itertools.pairwise([*first, len(owners)])}

    @functools.cached_property
    def _open(self) -> dict[tuple[int, str], Dataset]:
        """The tables that were opened, by shard and name."""
        return {}

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.references["prompt_id"])}

    def _values(self, column: Any) -> np.ndarray:
        """Return the values of an Arrow column as an array, [N] or [N, G], or [N, M] for a column of M numbers."""
        if pa.types.is_fixed_size_list(column.type):
            values = column.combine_chunks().flatten()  # a table without rows has no chunks
            return np.asarray(values).reshape(len(column), column.type.list_size)
        return np.asarray(column)
