"""The history in a W&B offline file (`run-ID.wandb`), read without wandb.

wandb 0.31 has no reader in Python any more. The file is a LevelDB log: a header of 7 bytes, then blocks
of 32 KiB with pieces of records: CRC-32, length, kind (whole, first, middle, last), data. A record is one
`Record` message (wandb/proto/wandb_internal.proto), of which only the history is looked at.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from engine.monitor import tags
from engine.monitor.metrics import Record
from engine.monitor.protobuf import fields, text
from engine.monitor.tail import Growing

BLOCK_BYTES = 1 << 15
_MAGIC = b":W&B"
_FILE_HEADER_BYTES = 7
_PIECE = struct.Struct("<IHB")
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_HISTORY = 2
_ITEM, _KEY, _NESTED_KEY, _JSON = 1, 1, 2, 16
LONGEST_RECORD_BYTES = 64 << 20


class WandbFile:
    """One growing offline file; `read` gives what was completed since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_damaged = False
        """True once the file stopped making sense; nothing more is read from it."""
        self._file = Growing(path)
        self._restarts = 0
        self._data = b""
        self._start = 0
        """Place in the file of the first byte of `_data`."""
        self._record = bytearray()

    def read(self) -> list[Record]:
        """Records of the newly completed history; about 1 MiB at most."""
        new = self._file.read()
        self._file.close()
        if self._file.restarts != self._restarts:
            self._restarts, self._data, self._start, self._record = self._file.restarts, b"", 0, bytearray()
            self.is_damaged = False
        self._data += new
        return [found for record in self._records() if (found := _history(record)) is not None]

    @property
    def is_behind(self) -> bool:
        """True when more could be read at once at the last call."""
        return not self.is_damaged and self._file.is_behind

    def _records(self) -> Iterator[bytes]:
        for kind, piece in self._pieces():
            if kind in (_WHOLE, _FIRST):
                self._record.clear()
            self._record += piece
            if len(self._record) > LONGEST_RECORD_BYTES:
                self.is_damaged = True
            elif kind in (_WHOLE, _LAST):
                yield bytes(self._record)

    def _pieces(self) -> Iterator[tuple[int, memoryview]]:
        """Kind and data of every whole piece at hand."""
        data, at = memoryview(self._data), 0
        if self._start == 0 and len(data) >= _FILE_HEADER_BYTES:
            self.is_damaged = not self._data.startswith(_MAGIC)
            at = _FILE_HEADER_BYTES
        while self._start + at and not self.is_damaged:
            left = BLOCK_BYTES - (self._start + at) % BLOCK_BYTES
            if left < _PIECE.size:  # zeros, for there is no room for a piece; not all of them may be there yet
                if len(data) - at < left:
                    break
                at += left
                continue
            if len(data) - at < _PIECE.size:
                break
            check, size, kind = _PIECE.unpack_from(data, at)
            begin, end = at + _PIECE.size, at + _PIECE.size + size
            if len(data) < end:
                break
            if end - at > left or check != zlib.crc32(data[begin - 1 : end]):
                self.is_damaged = True
                break
            yield kind, data[begin:end]
            at = end
        self._data, self._start = self._data[at:], self._start + at


def find_wandb_files(directory: Path) -> list[Path]:
    """Offline files in `directory` and up to two levels below, in the order in which they were begun."""
    patterns = ("*.wandb", "*run-*/*.wandb", "wandb/*run-*/*.wandb")
    found = {path.resolve() for pattern in patterns for path in directory.glob(pattern)}
    return sorted(found, key=lambda path: (path.parent.name, path.name))


def _history(message: bytes) -> Record | None:
    """The metrics of one step; None for a record of another kind."""
    try:
        for number, value in fields(memoryview(message)):
            if number == _HISTORY and isinstance(value, memoryview):
                return _as_record(dict(_items(value)))
    except (ValueError, IndexError):
        return None
    return None


def _items(history: memoryview) -> Iterator[tuple[str, object]]:
    for number, item in fields(history):
        if number != _ITEM or isinstance(item, int):
            continue
        name, value = "", ""
        for field, content in fields(item):
            if field in (_KEY, _NESTED_KEY):
                name = f"{name}.{text(content)}" if name else text(content)
            elif field == _JSON:
                value = text(content)
        try:
            yield name, json.loads(value)
        except (ValueError, RecursionError):
            continue


def _as_record(items: dict[str, object]) -> Record | None:
    step, t = items.get("_step"), items.get("_timestamp")
    if not isinstance(step, int) or not isinstance(t, (int, float)):
        return None
    record: Record = {"t": float(t), "iteration": step}
    for name, value in items.items():
        if value in ("NaN", "Infinity", "-Infinity"):
            value = float(str(value))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            tags.put(record, name, float(value))
    return record if len(record) > 2 else None
