"""Read a recording back: complete, with every checksum right, and from the disk as it is asked for."""

from __future__ import annotations

import functools
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
from learn2pd.recording.schema import MANIFEST, features_of, read_recording, shard_count, shard_name, table_path
from learn2pd.recording.writing import damage, entries

DERIVED = ("length", "reference", "prompt")
AGAIN = "run the stage 'record' again"


@dataclass(frozen=True)
class Recording:
    """A finished recording; `len` is its number of shards. Tables are mapped into memory, not read into it."""

    folder: Path
    manifest: dict[str, Any]  # recording.json: what it was made with

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """Open a recording, and read every file once to check it.

        Raises:
            UserError: it is not complete, or a shard is damaged; names the shard and what to do.
        """
        folder = Path(folder)
        described = read_recording(folder)
        there = entries(folder, shard_count(described))
        for number in range(len(there)):
            wrong = damage(folder, number)
            if wrong:
                raise UserError(
                    f"{folder / shard_name(number)} is damaged ({wrong}): {AGAIN}, which replaces this shard"
                )
        listed = (read_json(folder / MANIFEST) or {}).get("shards")
        if listed != there:
            named = [entry["name"] for entry, other in zip(there, listed or (), strict=False) if entry != other]
            state = (
                f"disagrees with the shards{f' about {named[0]}' if named else ''}"
                if listed
                else "is missing or damaged"
            )
            raise UserError(f"{folder / MANIFEST} {state}: {AGAIN}, which writes it anew")
        return cls(folder, described)

    def __len__(self) -> int:
        return shard_count(self.manifest)

    @property
    def gen_length(self) -> int:
        return int(self.manifest["gen_length"])

    @functools.cached_property
    def states(self) -> Dataset:
        """All states, in the order of the prompts and their steps."""
        return concatenate_datasets([self.table(shard, "states") for shard in range(len(self))])

    @functools.cached_property
    def references(self) -> Dataset:
        """One row a prompt, in their order."""
        return concatenate_datasets([self.table(shard, "references") for shard in range(len(self))])

    def table(self, shard: int, name: str) -> Dataset:
        """`states` or `references` of one shard.

        Raises:
            UserError: the file has other columns than this version writes.
        """
        path = table_path(self.folder, shard, name)
        found = Dataset.from_file(str(path))
        if found.features != features_of(name, self.gen_length):
            raise UserError(
                f"{path}: its columns are not those of schema {self.manifest['schema']}: delete {self.folder} and {AGAIN}"
            )
        return found

    def columns(self, shard: int, names: Sequence[str], split: str) -> dict[str, torch.Tensor]:
        """Columns of the states of one shard that belong to a split.

        Args:
            names: of numeric columns of the states, [N] or [N, G] as stored, and `length` ([N] long: answer tokens of the row's reference),
                `reference` ([N, G] long: its tokens) and `prompt` ([N] long: the prompt's number in the recording).
        """
        states = self.table(shard, "states").with_format("arrow")
        rows = np.flatnonzero(np.asarray(states.select_columns("split")[:]["split"]) == split)
        stored = states.select_columns([name for name in names if name not in DERIVED])[:]
        found = {name: torch.from_numpy(self._values(stored[name])[rows]) for name in stored.column_names}
        if set(names) & set(DERIVED):
            of_prompt = self.table(shard, "references").with_format("arrow")[:]
            number = {name: place for place, name in enumerate(of_prompt["prompt_id"].to_pylist())}
            owners = np.asarray(states.select_columns("prompt_id")[:]["prompt_id"])[rows]
            places = np.array([number[owner] for owner in owners], dtype=np.int64)
            derived = {"length": "length", "reference": "tokens"}
            found |= {
                name: torch.from_numpy(self._values(of_prompt[derived[name]])[places]).long()
                for name in names
                if name in derived
            }
            found["prompt"] = torch.from_numpy(places) + shard * int(self.manifest["shard_prompts"])
        return {name: found[name] for name in names}

    def references_of(self, prompt_ids: Sequence[str]) -> Dataset:
        """The references of some prompts, in their order.

        Raises:
            UserError: one of them was not recorded.
        """
        missing = [name for name in prompt_ids if name not in self._places]
        if missing:
            raise UserError(f"{self.folder}: there is no prompt {missing[0]!r} in this recording")
        return self.references.select([self._places[name] for name in prompt_ids])

    @functools.cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.references["prompt_id"])}

    def _values(self, column: Any) -> np.ndarray:
        """[N] or [N, G] of an Arrow column."""
        if pa.types.is_fixed_size_list(column.type):
            return np.concatenate([np.asarray(chunk.flatten()) for chunk in column.chunks]).reshape(
                len(column), self.gen_length
            )
        return np.asarray(column)
