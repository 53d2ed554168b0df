"""Scalars of TensorBoard event files, read without TensorBoard.

An event file is a row of TFRecords (tensorflow/core/lib/io/record_writer.cc): length, CRC of the
length, data, CRC of the data; the data is one `Event` message (tensorflow/core/util/event.proto).
Only the fields that hold scalars are looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from engine.monitor import tags
from engine.monitor.metrics import Record
from engine.monitor.protobuf import fields, text
from engine.monitor.tail import Growing

LONGEST_RECORD_BYTES = 64 << 20
"""A longer one is damage; histograms and images stay far below."""

_HEADER = struct.Struct("<QI")
_CRC_BYTES = 4
_DT_FLOAT, _DT_DOUBLE = 1, 2


class EventFile:
    """One growing event file; `read` gives what was completed since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_damaged = False
        """True once the file stopped making sense; nothing more is read from it."""
        self._file = Growing(path)
        self._restarts = 0
        self._data = b""

    def read(self) -> list[Record]:
        """Records of the newly completed events, those of one iteration joined; about 1 MiB at most."""
        new = self._file.read()
        self._file.close()  # a directory may hold hundreds
        if self._file.restarts != self._restarts:
            self._restarts, self._data, self.is_damaged = self._file.restarts, b"", False
        self._data += new
        return _join(self._events())

    @property
    def is_behind(self) -> bool:
        """True when more could be read at once at the last call."""
        return not self.is_damaged and self._file.is_behind

    def _events(self) -> Iterator[tuple[float, int, str, float]]:
        """(time, step, tag, value) of every scalar in the whole records at hand."""
        start, data = 0, self._data
        while not self.is_damaged and start + _HEADER.size <= len(data):
            length, crc = _HEADER.unpack_from(data, start)
            if length > LONGEST_RECORD_BYTES or crc != masked_crc(data[start : start + 8]):
                self.is_damaged = True
                break
            end = start + _HEADER.size + length + _CRC_BYTES
            if end > len(data):
                break
            yield from _scalars(memoryview(data)[start + _HEADER.size : end - _CRC_BYTES])
            start = end
        self._data = b"" if self.is_damaged else data[start:]


def find_event_files(directory: Path) -> list[Path]:
    """Event files in `directory` and one level below, in the order in which they were begun."""
    found = [*directory.glob("events.out.tfevents.*"), *directory.glob("*/events.out.tfevents.*")]
    return sorted(found, key=lambda path: (path.name.split(".")[3:4], path))


def _join(scalars: Iterator[tuple[float, int, str, float]]) -> list[Record]:
    records: list[Record] = []
    for t, step, tag, value in scalars:
        if not records or records[-1]["iteration"] != step:
            records.append({"t": t, "iteration": step})
        tags.put(records[-1], tag, value)
    return [record for record in records if len(record) > 2]


def _scalars(event: memoryview) -> Iterator[tuple[float, int, str, float]]:
    """The scalars of one `Event`; nothing for one that does not parse."""
    try:
        t, step, summaries = 0.0, 0, []
        for number, value in fields(event):
            if number == 1 and isinstance(value, memoryview):
                t = _unpack("<d", value)
            elif number == 2 and isinstance(value, int):
                step = value
            elif number == 5 and isinstance(value, memoryview):
                summaries.append(value)
        found = [pair for summary in summaries for n, v in fields(summary) if n == 1 for pair in _value(v)]
    except (ValueError, IndexError, struct.error):
        return
    for tag, scalar in found:
        yield t, step, tag, scalar


def _value(value: int | memoryview) -> Iterator[tuple[str, float]]:
    """(tag, number) of one `Summary.Value` that holds a scalar."""
    if isinstance(value, int):
        return
    tag, number = "", None
    for field, content in fields(value):
        if isinstance(content, int):
            continue
        if field == 1:
            tag = text(content)
        elif field == 2:
            number = _unpack("<f", content)
        elif field == 8:
            number = _tensor(content)
    if tag and number is not None:
        yield tag, number


def _tensor(tensor: memoryview) -> float | None:
    """The value of a `TensorProto` with one float or double, which newer writers use for scalars."""
    kind, raw = 0, b""
    for field, content in fields(tensor):
        if field == 1 and isinstance(content, int):
            kind = content
        elif field in (4, 5, 6) and isinstance(content, memoryview):
            raw = bytes(content)
    form = {(_DT_FLOAT, 4): "<f", (_DT_DOUBLE, 8): "<d"}.get((kind, len(raw)))
    return None if form is None else float(struct.unpack(form, raw)[0])


def _unpack(form: str, value: memoryview) -> float:
    return float(struct.unpack(form, value)[0])


def _make_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli, reflected
        table.append(value)
    return tuple(table)


_TABLE = _make_table()


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord does (tensorflow/core/lib/hash/crc32c.h)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
