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
MARK = BYTE_ORDER_MARK.encode()
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
    if not raw.removeprefix(MARK).strip():
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
    if not isinstance(value, dict):
        records.complaints.append(f"{place}: not an object but {type(value).__name__}")
        return
    repeated = _repeated_key(value)
    if repeated is None:
        records.rows.append(Record(value, place))
    else:
        records.complaints.append(f"{place}: the key {repeated!r} stands twice")


def _repeated_key(value: Any) -> str | None:
    """A key that stands twice in an object or in one that it holds, None where there is none."""
    held = [value]
    while held:
        part = held.pop()
        if isinstance(part, _Repeated):
            return part.key
        if isinstance(part, dict):
            held += part.values()
        elif isinstance(part, list):
            held += part
    return None


def _read_json(raw: bytes, records: Records) -> None:
    start = raw.removeprefix(MARK).lstrip()[:1]
    if start == b"[" and _read_array(raw, records):
        return
    _read_lines(raw, records)
    if start == b"{" and not records.rows:
        _refuse_one_object(raw, records)


def _read_array(raw: bytes, records: Records) -> bool:
    """Read a file that is one JSON array, and say whether it is one.

    Raises:
        UserError: The file is an array that is damaged, of which the lines would give some entries and not others.
    """
    try:
        entries = _parsed(raw.decode("utf-8-sig"))
    except ValueError as error:
        if _lines_are_pieces(raw):
            raise UserError(f"{records.source}: cannot be read as a JSON array: {first_line(error)}") from error
        return False
    if not entries:
        raise UserError(f"{records.source}: the file is empty; expected an array of objects, got []")
    records.unit = "entry"
    for number, entry in enumerate(entries, 1):
        _add(records, f"entry {number}", entry)
    return True


def _lines_are_pieces(raw: bytes) -> bool:
    """Whether the lines of a file are pieces of one array: the first is no value, and others end as pieces do."""
    lines = [line.strip() for line in LINE_END.split(raw.removeprefix(MARK)) if line.strip()]
    try:
        _parsed(lines[0].decode())
    except ValueError:
        return lines[-1].endswith(b"]") or any(line.endswith(b",") for line in lines)
    return False


def _read_lines(raw: bytes, records: Records) -> None:
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
    if not records.rows and undecoded == len(records.complaints):
        raise UserError(f"{records.source}: cannot be read, it is not text ({records.complaints[0]}); expected {KINDS}")


def _refuse_one_object(raw: bytes, records: Records) -> None:
    """Refuse a file whose lines hold no record because they are one object together."""
    try:
        _parsed(raw.decode("utf-8-sig"))
    except ValueError:
        return
    raise UserError(
        f"{records.source}: the file is one JSON object; expected an array of objects, or one object a line"
    )


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
    rows = _table_rows(list(io.StringIO(text, newline="")), delimiter, records)
    header = next(rows, ([], 0))[0]
    if records.complaints:
        raise UserError(
            f"{records.source}: cannot be read, {records.complaints[0]}; "
            "expected a first line with a name for each column"
        )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(
            f"{records.source}: two columns are called {twice!r}; expected a first line with a name for each column"
        )
    for cells, number in rows:
        if len(cells) == len(header):
            records.rows.append(Record(dict(zip(header, cells, strict=True)), f"line {number}"))
        else:
            records.complaints.append(f"line {number}: {len(cells)} cells, the first line names {len(header)} columns")
    if not records.rows and not records.complaints:
        raise UserError(
            f"{records.source}: the file is empty below its first line, which names the columns {', '.join(header)}"
        )


def _table_rows(lines: Sequence[str], delimiter: str, records: Records) -> Iterator[tuple[list[str], int]]:
    """Each row with the number of the line that it begins in; lines that cannot be read become complaints.

    A stray quote makes a cell out of all that follows, up to a line in which the cell cannot end. Only the line of the
    quote is damaged, so reading goes on in the next one. The lines that the cell took in are read one by one: where a
    quote is still open at the end of such a line, the row fails where the first one failed.
    """
    place = one_by_one = 0  # the next line, and the first line behind those that a damaged row took in
    while place < len(lines):
        end = place + 1 if place < one_by_one else len(lines)
        reader = csv.reader((lines[at] for at in range(place, end)), delimiter=delimiter, strict=True)
        number = place + 1
        try:
            cells = next(reader)
        except csv.Error as error:
            records.complaints.append(f"line {number}: not a row of a table ({error})")
            one_by_one = max(one_by_one, place + reader.line_num - 1)
            place += 1
            continue
        place += reader.line_num
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
