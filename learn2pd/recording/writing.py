"""Writing of shards, whole or not at all, and detection of damaged ones."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features
from torch import Tensor

from learn2pd.errors import UserError
from learn2pd.files import read_json, sha256, sha256_once, write_json
from learn2pd.recording.schema import (
    GROUPS,
    MANIFEST,
    RECORDING,
    TABLES,
    WIDE,
    entry_path,
    features_of,
    read_recording,
    shard_name,
    table_path,
)

Columns = Mapping[str, Tensor | Sequence[Any]]
CHUNK_ROWS = 256  # rows of an Arrow record batch; a reader has to touch a whole batch to read one row


@dataclass(frozen=True)
class Tables:
    """The two tables of one shard.

    The columns are stored by name, each [N] or [N, G], and their rows are in the order of the prompts and of their
    steps.
    """

    states: Columns
    references: Columns


def write_shard(folder: Path, number: int, tables: Tables, gen_length: int, recording: str) -> None:
    """Write the files of a shard. The entry is written last, and makes the shard count as done.

    Args:
        folder: the folder of the recording.
        number: number of the shard, from 0.
        tables: the two tables of the shard.
        gen_length: length of the canvas G, in tokens.
        recording: sha256 of the recording.json that the tables belong to.

    Raises:
        UserError: the disk is full, or the folder now holds another recording. No file of the shard is left in either
            case.
    """
    paths = {name: table_path(folder, number, name) for name in TABLES}
    partials = {name: path.with_name(path.name + ".partial") for name, path in paths.items()}
    groups = [group for group, column in GROUPS.items() if column in tables.states or column in tables.references]
    wide = {
        name: values.shape[1] for name, values in tables.states.items() if name in WIDE and isinstance(values, Tensor)
    }
    try:
        for name, partial in partials.items():
            _write_table(partial, getattr(tables, name), features_of(name, gen_length, groups, wide))
        entry = {
            "recording": recording,
            "prompts": len(tables.references["prompt_id"]),
            "rows": len(tables.states["prompt_id"]),
            **{
                name: {"bytes": partial.stat().st_size, "sha256": sha256(partial)} for name, partial in partials.items()
            },
        }
        # Another run may have replaced the recording while this process was at work.
        if sha256(folder / RECORDING) != recording:
            raise UserError(f"{folder} now holds another recording: shard {number} of the old one is given up")
        for name, partial in partials.items():
            os.replace(partial, paths[name])
        write_json(entry_path(folder, number), entry)
    except (OSError, UserError) as error:
        for partial in partials.values():
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"no space left on the disk while writing {folder / shard_name(number)}: "
                "every earlier shard is kept; free space and start again"
            ) from error
        raise


def _write_table(path: Path, columns: Columns, features: Features) -> None:
    schema = features.arrow_schema
    table = pa.Table.from_arrays([_array(columns[field.name], field.type) for field in schema], schema=schema)
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as writer:
        writer.write_table(table, max_chunksize=CHUNK_ROWS)


def _array(values: Tensor | Sequence[Any], kind: Any) -> Any:
    if not isinstance(values, Tensor):
        return pa.array(values, kind)
    if values.ndim == 1:
        return pa.array(values.numpy(), kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.numpy().reshape(-1), kind.value_type), values.shape[1])


def damage(folder: Path, number: int) -> str | None:
    """Check the files of a shard whose entry exists.

    Args:
        folder: the folder of the recording.
        number: number of the shard, from 0.

    Returns:
        What is wrong with the shard, in words; None where nothing is wrong.
    """
    entry = read_json(entry_path(folder, number))
    try:
        if entry is None:
            return f"{entry_path(folder, number).name} cannot be read"
        if entry["recording"] != sha256(folder / RECORDING):
            return f"it belongs to another {RECORDING}"
        for name in TABLES:
            path = table_path(folder, number, name)
            expected = entry[name]
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{path.name} has {size} bytes, {expected['bytes']} were written"
            if sha256_once(path) != expected["sha256"]:
                return f"{path.name} has another sha256 than what was written"
    except OSError as error:
        return f"{Path(error.filename or '').name} cannot be read ({error.strerror})"
    except (KeyError, TypeError):
        return f"{entry_path(folder, number).name} is not an entry of a shard"
    return None


def entries(folder: Path, count: int) -> list[dict[str, Any]]:
    """Read the entries of all shards.

    Args:
        folder: the folder of the recording.
        count: number of shards of the recording.

    Returns:
        The entries with the names of their shards, as manifest.json lists them.

    Raises:
        UserError: an entry is missing or cannot be read; the message names the shard.
    """
    listed = []
    for number in range(count):
        entry = read_json(entry_path(folder, number))
        if entry is None:
            raise UserError(
                f"{folder / shard_name(number)} is missing: the recording has {count} shards; "
                "run the stage 'record' again to complete it"
            )
        listed.append({"name": shard_name(number)} | entry)
    return listed


def write_manifest(folder: Path, count: int) -> None:
    """List all shards in manifest.json.

    Args:
        folder: the folder of the recording.
        count: number of shards of the recording.

    Raises:
        UserError: the entry of a shard is missing.
    """
    schema = read_recording(folder)["schema"]
    manifest = {"schema": schema, "recording": sha256(folder / RECORDING), "shards": entries(folder, count)}
    if read_json(folder / MANIFEST) != manifest:
        write_json(folder / MANIFEST, manifest)
