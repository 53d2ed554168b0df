"""Records of one input file or of a part of it, each as training data or as a rejection with its reason.

A part of a text or JSON-lines file is a range of bytes and owns the lines that start in it, so that
parts can be read anywhere without looking at what comes before. A part of a Parquet file is a range
of row groups, of an Arrow file a range of record batches.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from engine.data import optional
from engine.data.shape import TEXT, Shape, Unusable
from engine.data.sources import GZIP, JSON_LINES, PARQUET, SourceFile
from engine.errors import SettingsError

PIECE_BYTES = 1 << 20
"""A text file becomes documents of about this size, cut at line ends."""

MAX_RECORD_BYTES = 256 << 20
"""A longer line is rejected: tokenising it would take more memory than a worker may have."""

_BUFFER_BYTES = 1 << 20
_ROWS_PER_BATCH = 256
_MEASURED_BYTES = 8 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a record cannot be used."""

    reason: str


type Messages = list[Mapping[str, Any]]
type Found = tuple[int, bytes | Messages | Rejection]
"""Where a record starts (byte, or row for Parquet and Arrow), and its UTF-8 text, its messages, or the problem."""


def documents(file: SourceFile, shape: Shape, start: int = 0, end: int | None = None) -> Iterator[Found]:
    """The records of `file`, or of its part from `start` to `end`. Raises SettingsError for a file that is broken."""
    try:
        if file.is_lines:
            yield from _from_lines(file, shape, start, end)
        else:
            yield from _from_table(file, shape, start, end)
    except (OSError, EOFError) as error:
        raise SettingsError(f"{file.path} cannot be read: {error}", "check the file; copy it again") from error


def peek(file: SourceFile, count: int) -> list[Mapping[str, Any]]:
    """The first `count` records as they are, those that are no objects left out."""
    if file.format == JSON_LINES:
        found = _whole_lines(file)
    elif file.is_lines:
        return []
    else:
        found = (row for _, rows in _tables(file, None, 0, 1) for row in rows.to_pylist())
    kept: list[Mapping[str, Any]] = []
    for record in found:
        if isinstance(record, Mapping):
            kept.append(record)
        if len(kept) >= count:
            break
    return kept


def _unpacked(source: object) -> IO[bytes]:
    arrow = optional.load("pyarrow", "reading .zst files")
    return io.BufferedReader(arrow.CompressedInputStream(source, "zstd"), _BUFFER_BYTES)


def _whole_lines(file: SourceFile) -> Iterator[object]:
    """What the lines say, those that are not JSON left out."""
    for _, line in _lines(file, 0, None):
        try:
            yield _loads(line or b"")
        except ValueError:
            continue


def open_stream(file: SourceFile) -> IO[bytes]:
    """The bytes of `file`, decompressed. Raises SettingsError when a package for that is missing."""
    if file.compression == GZIP:
        return gzip.open(file.path, "rb")  # type: ignore[return-value]
    if file.compression:
        return _unpacked(file.path)
    return open(file.path, "rb", buffering=_BUFFER_BYTES)


def expansion(file: SourceFile) -> float:
    """How many bytes of content one byte of a compressed file holds, from its first megabytes."""
    with open(file.path, "rb") as raw:
        stream: IO[bytes] = gzip.open(raw, "rb") if file.compression == GZIP else _unpacked(raw)  # type: ignore[assignment]
        with stream:
            content = len(stream.read(_MEASURED_BYTES))
            is_whole = not stream.read(1)
            stored = file.size_bytes if is_whole else raw.tell()
    return content / max(1, stored)


def table_parts(file: SourceFile) -> list[int]:
    """The bytes in each row group or record batch of a Parquet or Arrow file."""
    if file.format == PARQUET:
        metadata = _parquet(file).metadata
        return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    return [batch.nbytes for batch in _arrow_batches(file)]


def table_rows(file: SourceFile) -> int:
    """How many rows a Parquet or Arrow file has."""
    if file.format == PARQUET:
        return int(_parquet(file).metadata.num_rows)
    return sum(batch.num_rows for batch in _arrow_batches(file))


def line_number(path: str, offset: int) -> int:
    """The number, from 1, of the line of the file at `path` that holds byte `offset`."""
    lines, left = 1, offset
    with open(path, "rb") as stream:
        while left > 0 and (block := stream.read(min(left, _BUFFER_BYTES))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines


def place(file: SourceFile, position: int) -> str:
    """Where a record is, for people: a line of a text, a row of a table."""
    if not file.is_lines:
        return f"{file.path}, row {position + 1}"
    if file.compression:
        return f"{file.path}, at byte {position:,} of its content"
    return f"{file.path}, line {line_number(file.path, position):,}"


def _from_lines(file: SourceFile, shape: Shape, start: int, end: int | None) -> Iterator[Found]:
    if file.format != JSON_LINES:
        if shape.kind != TEXT:
            raise SettingsError(f"{file.path} is plain text, not {shape.kind} records", "give JSON lines or Parquet")
        yield from _pieces(file, start, end)
        return
    for offset, line in _lines(file, start, end):
        if line is None:
            yield offset, Rejection(f"it is longer than {MAX_RECORD_BYTES >> 20} MiB")
        elif line.strip():
            try:
                yield offset, _training_data(shape, _loads(line))
            except (Unusable, ValueError) as error:
                yield offset, Rejection(_reason(error, line))


def _training_data(shape: Shape, record: object) -> bytes | Messages:
    return shape.text(record).encode() if shape.kind == TEXT else shape.messages(record)


def _load_parser() -> Any:
    try:
        import orjson
    except ImportError:
        return json.loads

    def fast_or_exact(line: bytes) -> object:
        try:
            return orjson.loads(line)
        except ValueError:
            # The standard library takes NaN and says better what is wrong.
            return json.loads(line.decode().rstrip())

    return fast_or_exact


_loads = _load_parser()


def _reason(error: Exception, line: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte 0x{line[error.start]:02x} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair, which is no text"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON ({error.msg} at column {error.colno})"
    return str(error)


def _pieces(file: SourceFile, start: int, end: int | None) -> Iterator[Found]:
    """Documents of a text file: the lines that start within one and the same PIECE_BYTES."""
    held: list[bytes] = []
    held_from = number = -1
    for offset, line in _lines(file, start, end):
        if line is None:
            yield offset, Rejection(f"the line is longer than {MAX_RECORD_BYTES >> 20} MiB")
            continue
        if offset // PIECE_BYTES != number:
            yield from _joined(held_from, held)
            held, held_from, number = [], offset, offset // PIECE_BYTES
        held.append(line)
    yield from _joined(held_from, held)


def _joined(offset: int, lines: list[bytes]) -> Iterator[Found]:
    if not lines:
        return
    text = b"".join(lines)
    try:
        text.decode()
    except UnicodeDecodeError as error:
        yield offset + error.start, Rejection(f"byte 0x{text[error.start]:02x} is not UTF-8")
        return
    yield offset, text


def _lines(file: SourceFile, start: int, end: int | None) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their offsets; None for one that is too long."""
    with open_stream(file) as stream:
        offset = 0
        if start:
            # The line at work in the byte before belongs to the part before.
            stream.seek(start - 1)
            offset = start - 1 + _skip_line(stream)
        while end is None or offset < end:
            line = stream.readline(MAX_RECORD_BYTES + 1)
            if not line:
                return
            size = len(line)
            if size > MAX_RECORD_BYTES:
                size += _skip_line(stream)
                yield offset, None
            else:
                yield offset, line.removeprefix(_BYTE_ORDER_MARK) if offset == 0 else line
            offset += size


def _skip_line(stream: IO[bytes]) -> int:
    skipped = 0
    while part := stream.readline(_BUFFER_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _from_table(file: SourceFile, shape: Shape, start: int, end: int | None) -> Iterator[Found]:
    for first, rows in _tables(file, shape, start, end):
        if shape.kind == TEXT:
            yield from _text_column(first, rows, shape)
            continue
        for row, record in enumerate(rows.to_pylist(), first):
            if shape.tools in record:
                # A table gives every tool the columns of all of them.
                record[shape.tools] = _without_nulls(record[shape.tools])
            try:
                yield row, shape.messages(record)
            except Unusable as error:
                yield row, Rejection(str(error))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _text_column(first: int, rows: Any, shape: Shape) -> Iterator[Found]:
    arrow = optional.load("pyarrow", "reading tables")
    column = rows.column(shape.column)
    if not (arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type)):
        raise SettingsError(
            f"the column {shape.column!r} holds {column.type}, not text", "choose another with --column"
        )
    # As bytes: one bad string must not cost its whole batch.
    for row, value in enumerate(column.cast(arrow.large_binary()).to_pylist(), first):
        if value is None:
            yield row, Rejection(f"its {shape.column!r} is null, not text")
            continue
        try:
            value.decode()
        except UnicodeDecodeError as error:
            yield row, Rejection(f"byte 0x{value[error.start]:02x} of its {shape.column!r} is not UTF-8")
            continue
        yield row, value


def _tables(file: SourceFile, shape: Shape | None, start: int, end: int | None) -> Iterator[tuple[int, Any]]:
    """Batches of rows, each with the number of its first row."""
    columns = list(shape.columns) if shape else None
    if columns and shape and shape.tools in _column_names(file):
        columns.append(shape.tools)
    if file.format == PARQUET:
        parquet = _parquet(file)
        _need_columns(file, parquet.schema_arrow.names, columns)
        groups = range(start, parquet.num_row_groups if end is None else min(end, parquet.num_row_groups))
        first = sum(parquet.metadata.row_group(i).num_rows for i in range(start))
        batches = parquet.iter_batches(_ROWS_PER_BATCH, row_groups=list(groups), columns=columns)
    else:
        first, batches = 0, _arrow_slice(file, start, end)
        first = sum(batch.num_rows for batch in _arrow_slice(file, 0, start)) if start else 0
    for batch in batches:
        _need_columns(file, batch.schema.names, columns)
        for offset in range(0, batch.num_rows, _ROWS_PER_BATCH):
            part = batch.slice(offset, _ROWS_PER_BATCH)
            yield first + offset, part.select(columns) if columns else part
        first += batch.num_rows


def _column_names(file: SourceFile) -> list[str]:
    if file.format == PARQUET:
        return list(_parquet(file).schema_arrow.names)
    return next((list(batch.schema.names) for batch in _arrow_batches(file)), [])


def _need_columns(file: SourceFile, names: list[str], columns: list[str] | None) -> None:
    missing = [name for name in columns or [] if name not in names]
    if missing:
        raise SettingsError(
            f"{file.path} has no column {missing[0]!r}; it has {', '.join(names)}",
            "prepare files with other columns apart, or choose one with --column",
        )


def _parquet(file: SourceFile) -> Any:
    arrow = optional.load("pyarrow", "reading Parquet files")
    parquet = optional.load("pyarrow.parquet", "reading Parquet files")
    try:
        return parquet.ParquetFile(file.path)
    except arrow.ArrowInvalid as error:
        raise SettingsError(f"{file.path} is not a whole Parquet file: {error}", "copy it again") from error


def _arrow_slice(file: SourceFile, start: int, end: int | None) -> Iterator[Any]:
    for number, batch in enumerate(_arrow_batches(file)):
        if end is not None and number >= end:
            return
        if number >= start:
            yield batch


def _arrow_batches(file: SourceFile) -> Iterator[Any]:
    arrow = optional.load("pyarrow", "reading Arrow files")
    ipc = optional.load("pyarrow.ipc", "reading Arrow files")
    try:
        with arrow.memory_map(file.path) as stream:
            # `datasets` writes streams; others write files, which begin with this word.
            if _head(file.path, 6) == b"ARROW1":
                reader = ipc.open_file(stream)
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number)
            else:
                yield from ipc.open_stream(stream)
    except arrow.ArrowInvalid as error:
        raise SettingsError(f"{file.path} is not a whole Arrow file: {error}", "save the dataset again") from error


def _head(path: str, size: int) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(size)
