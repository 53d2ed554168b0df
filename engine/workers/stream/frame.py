"""What `torch.save` writes, without torch: importing it takes longer than converting 1 GB.

A zip archive of stored entries, each aligned to 64 bytes: the pickle of a thing, then the values of each
tensor in it (caffe2/serialize/inline_container.cc, torch 2.13). A chunk of a checkpoint is one tensor: head +
values + tail. This frame depends on shape and type alone, so the values never pass through here.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from engine.workers.stream.torch_pickle import Call, Global, dumps
from engine.workers.stream.values import BF16, FP32, Array, DType

_ALIGNMENT = 64
_FOLDER = b"archive/"
_IDENTITY = b"0" * 40
"""torch writes two hashes here, of the names and of the sums, and reads them nowhere."""
_PROTOCOL = 2
_STORAGES = {
    BF16: "BFloat16Storage",
    FP32: "FloatStorage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.bool_): "BoolStorage",
}

_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_DESCRIPTOR = struct.Struct("<4sIII")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<4sIQI")
_END = struct.Struct("<4sHHHHIIH")
_FLAGS = 0x808
"""Names are UTF-8, sums and sizes follow the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    name: bytes
    size: int
    crc: int
    start: int
    """Of its header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """Stands for the values of a tensor in the pickle."""

    kind: str
    number: int
    count: int


@cache
def frame(shape: tuple[int, ...], dtype: DType) -> tuple[bytes, bytes]:
    """Head and tail of the archive of a contiguous tensor, as torch makes it without sums."""
    # The values come later, so no sum over them can be known; torch does not look at it.
    archive = _Archive(has_sums=False)
    count = int(np.prod(shape, dtype=np.int64))
    archive.begin(dumps(_tensor(shape, dtype, 0), _PROTOCOL, _persistent))
    archive.skip(b"data/0", count * dtype.itemsize)
    tail = archive.end()
    return bytes(archive.head), tail


def saved(thing: Any) -> bytes:
    """What `torch.save` writes for something; a numpy array in a dictionary becomes a tensor."""
    archive = _Archive(has_sums=True)
    arrays: list[Array] = []
    if isinstance(thing, dict):
        arrays = [value for value in thing.values() if isinstance(value, np.ndarray)]
        numbers = {id(value): number for number, value in enumerate(arrays)}
        thing = {
            key: _tensor(value.shape, value.dtype, numbers[id(value)]) if id(value) in numbers else value
            for key, value in thing.items()
        }
    archive.begin(dumps(thing, _PROTOCOL, _persistent))
    for number, array in enumerate(arrays):
        archive.put(b"data/%d" % number, array.tobytes())
    tail = archive.end()
    return bytes(archive.head) + tail


def _tensor(shape: Sequence[int], dtype: DType, number: int) -> Call:
    """As torch pickles a tensor."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= size
    storage = _Reference(kind=_STORAGES[dtype], number=number, count=step)
    return Call(_TENSOR, (storage, 0, tuple(shape), tuple(strides), False, OrderedDict()))


def _persistent(thing: Any) -> Any:
    if isinstance(thing, _Reference):
        return "storage", Global("torch", thing.kind), str(thing.number), "cpu", thing.count
    return None


class _Archive:
    """The zip file in the making; what follows a gap that is left for values is its tail."""

    def __init__(self, *, has_sums: bool) -> None:
        self.head = bytearray()
        self._tail: bytearray | None = None
        self._skipped = 0
        self._entries: list[_Entry] = []
        self._has_sums = has_sums

    def begin(self, pickled: bytes) -> None:
        self.put(b"data.pkl", pickled)
        self.put(b".format_version", b"1")
        self.put(b".storage_alignment", b"%d" % _ALIGNMENT)
        self.put(b"byteorder", b"little")

    def put(self, name: bytes, data: bytes) -> None:
        self._open(name, len(data), zlib.crc32(data) if self._has_sums else 0)
        self._write(data)
        self._close()

    def skip(self, name: bytes, size: int) -> None:
        """An entry whose data are written by somebody else."""
        self._open(name, size, 0)
        self._tail, self._skipped = bytearray(), size
        self._close()

    def end(self) -> bytes:
        """The rest of the archive: all of it, or what follows the gap."""
        self.put(b"version", b"3\n")
        self.put(b".data/serialization_id", _IDENTITY)
        start = self._position
        for one in self._entries:
            self._write(
                _CENTRAL.pack(b"PK\1\2", 0, 0, _FLAGS, 0, 0, 0, one.crc, one.size, one.size, len(one.name),
                              0, 0, 0, 0, 0, one.start)
                + one.name
            )  # fmt: skip
        end, count = self._position, len(self._entries)
        self._write(_END_64.pack(b"PK\6\6", _END_64.size - 12, 0x31E, 45, 0, 0, count, count, end - start, start))
        self._write(_LOCATOR_64.pack(b"PK\6\7", 0, end, 1))
        self._write(_END.pack(b"PK\5\6", 0, 0, count, count, end - start, start, 0))
        return bytes(self._tail or b"")

    @property
    def _position(self) -> int:
        return len(self.head) + self._skipped + len(self._tail or b"")

    def _write(self, data: bytes) -> None:
        (self.head if self._tail is None else self._tail).extend(data)

    def _open(self, name: bytes, size: int, crc: int) -> None:
        name = _FOLDER + name
        start = self._position
        self._entries.append(_Entry(name=name, size=size, crc=crc, start=start))
        padding = -(start + _LOCAL.size + len(name) + 4) % _ALIGNMENT
        self._write(_LOCAL.pack(b"PK\3\4", 0, _FLAGS, 0, 0, 0, 0, 0, 0, len(name), padding + 4))
        self._write(name + b"FB" + padding.to_bytes(2, "little") + b"Z" * padding)

    def _close(self) -> None:
        one = self._entries[-1]
        self._write(_DESCRIPTOR.pack(b"PK\7\x08", one.crc, one.size, one.size))
