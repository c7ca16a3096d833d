"""Records out of files that people have: JSON lines, a JSON array, CSV, TSV or Parquet, plain or packed by gzip.

A record that cannot be used must not cost the others. Reading therefore never stops at one: it keeps a complaint with
the number of the line and goes on. JSON lines end at a line feed, a carriage return or both, and nowhere else: the
separators U+2028, U+2029 and U+0085 may stand in a JSON text. Every text is UTF-8, with or without a byte order mark,
whatever the locale says.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from learn2pd.errors import UserError, first_line, suggest
from learn2pd.files import here_or_shipped

LINE_END = re.compile(rb"\r\n|\n|\r")
BYTE_ORDER_MARK = "\ufeff"
LARGEST_CELL = 2**31 - 1  # characters of a CSV cell; Python's own limit is 128 KiB
LONGEST_INTEGER = 4000  # digits that int() takes by default, less a few
COLUMNS_BY = {".csv": ",", ".tsv": "\t"}
KINDS = "JSON lines, a JSON array, CSV, TSV or Parquet, in UTF-8"


@dataclass(frozen=True)
class Record:
    """One object of a file.

    Attributes:
        fields: The values by the names of their fields.
        place: The place of the object in the file, such as "line 12".
    """

    fields: dict[str, Any]
    place: str


@dataclass
class Records:
    """The content of a file or a data set.

    Attributes:
        source: The words by which messages name the file, such as "data.path='questions.jsonl'".
        name: The name for the origin of a prompt, such as "questions.jsonl".
        unit: The word for one record: line, row or entry.
        rows: The records that can be used.
        complaints: A sentence for each record that cannot be used.
        digest: The SHA-256 of the file on the disk; empty for a data set of the hub.
    """

    source: str
    name: str
    unit: str
    rows: list[Record] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    digest: str = ""

    def columns(self) -> list[str]:
        """The names of all fields, in the order in which they first occur."""
        return list(dict.fromkeys(name for row in self.rows for name in row.fields))


def read_records(path: str | Path, key: str = "data.path") -> Records:
    """The records of a file, and a complaint for each line that holds none.

    Args:
        path: The file. Its ending decides between CSV, TSV and JSON; Parquet and gzip are recognised by their first
            bytes.
        key: The configuration's name for the path, for messages.

    Raises:
        UserError: The file is missing, a folder, empty, damaged or not text.
    """
    source = f"{key}={str(path)!r}"
    raw = _bytes_of(Path(here_or_shipped(str(path))), source)
    name = Path(path).name
    digest = hashlib.sha256(raw).hexdigest()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{source}: cannot be read, the compressed file is cut off or damaged ({first_line(error)})"
            ) from error
    if not raw.removeprefix(b"\xef\xbb\xbf").strip():
        raise UserError(f"{source}: the file is empty; expected one JSON object a line, or another of {KINDS}")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{source}: cannot be read, it is UTF-16; expected {KINDS}")
    ending = Path(name.lower().removesuffix(".gz")).suffix
    records = Records(source, name, "line", digest=digest)
    if raw[:4] == b"PAR1" or ending == ".parquet":
        _read_parquet(raw, records)
    elif ending in COLUMNS_BY:
        _read_table(raw, COLUMNS_BY[ending], records)
    else:
        _read_json(raw, records)
    return records


def _bytes_of(path: Path, source: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        near = suggest(path.name, [other.name for other in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"{source}: cannot be read, no such file{near}") from error
    except IsADirectoryError as error:
        raise UserError(
            f"{source}: cannot be read, it is a folder; expected a file (data.source=hub reads a folder of files)"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: cannot be read ({first_line(error)})") from error


# ---- JSON


class _Repeated(dict[str, Any]):
    """An object in which a key stands twice, so that nobody knows which value is meant."""

    key = ""


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) == len(pairs):
        return held
    repeated = _Repeated(held)
    names = [name for name, _ in pairs]
    repeated.key = next(name for name in names if names.count(name) > 1)
    return repeated


def _integer(digits: str) -> float:
    """An integer, or infinity where Python would not convert so many digits."""
    return int(digits) if len(digits) <= LONGEST_INTEGER else float(digits)


def _parsed(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None


def _add(records: Records, place: str, value: Any) -> None:
    if isinstance(value, _Repeated):
        records.complaints.append(f"{place}: the key {value.key!r} stands twice")
    elif isinstance(value, dict):
        records.rows.append(Record(value, place))
    else:
        records.complaints.append(f"{place}: not an object but {type(value).__name__}")


def _read_json(raw: bytes, records: Records) -> None:
    undecoded = 0
    for number, piece in enumerate(LINE_END.split(raw), 1):
        place = f"line {number}"
        try:
            line = piece.decode().removeprefix(BYTE_ORDER_MARK)
            if line.strip():
                _add(records, place, _parsed(line))
        except UnicodeDecodeError as error:
            undecoded += 1
            records.complaints.append(f"{place}: not UTF-8 (byte {piece[error.start]:#04x})")
        except ValueError as error:
            records.complaints.append(f"{place}: {error}")
    if records.rows:
        return
    if undecoded == len(records.complaints):
        raise UserError(f"{records.source}: cannot be read, it is not text ({records.complaints[0]}); expected {KINDS}")
    start = raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start in (b"[", b"{"):
        _read_whole(raw, records, expect_array=start == b"[")


def _read_whole(raw: bytes, records: Records, expect_array: bool) -> None:
    """A file that is one JSON value. It stays lines with complaints where no reading as one value is better."""
    try:
        value = _parsed(raw.decode("utf-8-sig"))
    except ValueError as error:
        if len(records.complaints) > 1 and expect_array and raw.rstrip().endswith(b"]"):
            raise UserError(f"{records.source}: cannot be read as a JSON array: {error}") from error
        return
    if isinstance(value, dict):
        raise UserError(
            f"{records.source}: the file is one JSON object; expected an array of objects, or one object a line"
        )
    if not value:
        raise UserError(f"{records.source}: the file is empty; expected an array of objects, got []")
    records.unit = "entry"
    records.complaints.clear()
    for number, entry in enumerate(value, 1):
        _add(records, f"entry {number}", entry)


# ---- tables


def _read_table(raw: bytes, delimiter: str, records: Records) -> None:
    """A table whose first line names the columns. Every cell is text: a table does not say what is a number."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = len(LINE_END.findall(raw, 0, error.start)) + 1
        raise UserError(
            f"{records.source}: cannot be read, line {number} is not UTF-8 (byte {raw[error.start]:#04x})"
        ) from error
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines = _table_lines(reader, records)
    header = next(lines, ([], 0))[0]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(
            f"{records.source}: two columns are called {twice!r}; expected a first line with a name for each column"
        )
    for cells, number in lines:
        if len(cells) == len(header):
            records.rows.append(Record(dict(zip(header, cells, strict=True)), f"line {number}"))
        else:
            records.complaints.append(f"line {number}: {len(cells)} cells, the first line names {len(header)} columns")
    if not records.rows and not records.complaints:
        raise UserError(
            f"{records.source}: the file is empty below its first line, which names the columns {', '.join(header)}"
        )


def _table_lines(reader: Any, records: Records) -> Iterator[tuple[list[str], int]]:
    """Each row with the number of the line that it begins in; rows that cannot be read become complaints."""
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            records.complaints.append(f"line {number}: not a row of a table ({error})")
            continue
        if cells:
            yield cells, number


def _read_parquet(raw: bytes, records: Records) -> None:
    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(raw)).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{records.source}: cannot be read as Parquet ({first_line(error)})") from error
    if not rows:
        raise UserError(f"{records.source}: the file is empty: it has columns and no row")
    records.unit = "row"
    records.rows += [Record(row, f"row {number}") for number, row in enumerate(rows, 1)]


# ---- the hub


def hub_records(
    name: str, subset: str | None, split: str, unreachable: str | None = None, revision: str | None = None
) -> Records:
    """Load the rows of a data set of the hub.

    Args:
        name: The name of the data set.
        subset: The name of its configuration; None takes the default one.
        split: The name of its split.
        unreachable: The reason why the hub does not answer, in which case only the local cache is read; None where it
            answers.
        revision: The revision of its repository: a branch, tag or commit.

    Returns:
        The rows.

    Raises:
        UserError: The data set cannot be loaded.
    """
    import datasets
    from huggingface_hub import constants

    before = (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE)
    if unreachable is not None:  # otherwise every request is tried again for minutes
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        rows = datasets.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # datasets, fsspec and the HTTP client raise almost every kind
        why = f"the hub data set could not be loaded ({first_line(error)})"
        if unreachable is not None:
            why = (
                f"{constants.ENDPOINT} could not be reached ({unreachable}), "
                "and the local cache of data sets does not hold it"
            )
        raise UserError(
            f"data.path={name!r}: {why}; give a local file with data.source=jsonl, or a folder of the data set"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
    return Records(
        f"data.path={name!r}", name, "row", [Record(dict(row), f"row {number}") for number, row in enumerate(rows, 1)]
    )
