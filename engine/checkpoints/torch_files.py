"""What `torch.load` would unpickle from a file, found the way torch finds it (torch/serialization.py, 2.13).

A file that begins as a zip archive is read by miniz, anything else as up to five pickles one after another.
zipfile and miniz disagree about bytes before or behind an archive, letter case, names that stand twice, and
damaged directories; so only archives that can be read in one way are taken, which is all that `torch.save` writes.
"""

from __future__ import annotations

import io
import os
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

from engine.checkpoints import pickles
from engine.checkpoints.pickles import Rehearsal
from engine.errors import CheckpointError

MAX_PICKLE_BYTES = 64_000_000
MAX_DIRECTORY_BYTES = 4_000_000
MAX_NESTED = 100
"""Pickles within pickles of one file."""

_LOCAL, _END, _LOCATOR, _END_64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_ENCRYPTED = 0x61
"""Or patched: flags of an entry that miniz does not read."""
_END_BYTES, _LOCATOR_BYTES, _END_64_BYTES = 22, 20, 56
_RECORDS = re.compile(
    r"data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment|\.data/(serialization_id|version)"
)
_STORAGE = re.compile(r"[^/]+/data/[0-9]+")
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5
"""Magic number, version, system, the object, the keys of its storages."""


def rehearse(file: BinaryIO, *, with_storages: bool = False) -> Iterator[Rehearsal]:
    """Go through every pickle of `file`, which is all of a seekable file, and those within them.

    `with_storages` takes the values of its tensors for pickles too, which those of Transformer Engine
    are. Raises CheckpointError for a file that torch might read otherwise than it is read here.
    """
    waiting = [(file, with_storages)]
    nested = 0
    while waiting:
        next_file, its_storages = waiting.pop()
        for rehearsal, inner in _of_one(next_file, its_storages):
            yield rehearsal
            nested += len(inner)
            if nested > MAX_NESTED:
                raise _refusal(f"it holds more than {MAX_NESTED} pickles within pickles")
            waiting += [(io.BytesIO(data), False) for data in inner if data]


def rehearse_pickle(file: BinaryIO, limit_bytes: int) -> Iterator[Rehearsal]:
    """The same for a file that `pickle.load` reads: the first pickle, and those within it."""
    limit = min(_size(file), limit_bytes)
    file.seek(0)
    rehearsal = pickles.rehearse(file, limit)
    yield rehearsal
    for data in rehearsal.nested:
        if data:
            yield from rehearse(io.BytesIO(data))


def _of_one(file: BinaryIO, with_storages: bool) -> Iterator[tuple[Rehearsal, list[bytes]]]:
    """Each pickle of one file, with what is unpickled in its turn."""
    if _read(file, 0, 4) == _LOCAL:
        data, storages = _from_zip(file, with_storages)
        rehearsal = pickles.rehearse(io.BytesIO(data), len(data))
        yield rehearsal, [*rehearsal.nested, *storages]
        return
    if _is_tar(file):
        raise _refusal("it is a tar archive, as torch wrote before 2017")
    limit = min(_size(file), MAX_PICKLE_BYTES)
    file.seek(0)
    first = pickles.rehearse(file, limit)
    yield first, [*first.nested]
    if isinstance(first.value, pickles.StandIn):
        raise _refusal("what it begins with is computed")
    if first.value != _MAGIC_NUMBER:
        return  # torch stops here
    for _ in range(_LEGACY_PICKLES - 1):
        following = pickles.rehearse(file, limit)
        yield following, [*following.nested]


def _is_tar(file: BinaryIO) -> bool:
    """As torch asks it."""
    file.seek(0)
    try:
        tarfile.open(fileobj=file, mode="r:", format=tarfile.PAX_FORMAT).close()
    except tarfile.TarError:
        return False
    except Exception as error:  # noqa: BLE001 hostile headers make tarfile raise anything
        raise _refusal(f"it may be a tar archive: {error}") from error
    return True


def _from_zip(file: BinaryIO, with_storages: bool) -> tuple[bytes, list[bytes]]:
    """`data.pkl` of an archive that can be read in one way only, and its storages if asked for."""
    size = _size(file)
    entries = _directory(file, size)
    folder = entries[0].filename.partition("/")[0]
    names = [entry.filename for entry in entries]
    for entry in entries:
        record = entry.orig_filename.removeprefix(f"{folder}/")
        if record == entry.orig_filename or not _RECORDS.fullmatch(record):
            raise _refusal(f"it holds {entry.orig_filename[:80]!r}, which torch.save does not write")
        is_plain = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
        if not is_plain or entry.flag_bits & _ENCRYPTED:
            raise _refusal(f"{entry.filename} is not stored as it is")
    if len(set(names)) < len(names) or f"{folder}/data.pkl" not in names:
        raise _refusal("data.pkl does not stand in it once")
    by_name = dict(zip(names, entries, strict=True))
    data = _entry(file, size, by_name[f"{folder}/data.pkl"])
    stored = [entry for entry in entries if _STORAGE.fullmatch(entry.filename)] if with_storages else []
    if sum(entry.file_size for entry in stored) > MAX_PICKLE_BYTES:
        raise _refusal("the values of its tensors are too long for pickles")
    return data, [_entry(file, size, entry) for entry in stored]


def _directory(file: BinaryIO, size: int) -> list[zipfile.ZipInfo]:
    """The central directory, which must end the file together with its records."""
    end = size - _END_BYTES
    record = _read(file, end, _END_BYTES)
    if end < 0 or record[:4] != _END or record[-2:] != b"\0\0":
        raise _refusal("it begins as a zip archive and does not end as one")
    count, length, start = struct.unpack_from("<HII", record, 10)
    locator = _read(file, end - _LOCATOR_BYTES, _LOCATOR_BYTES)
    if locator[:4] == _LOCATOR:
        end -= _LOCATOR_BYTES + _END_64_BYTES
        record = _read(file, end, _END_64_BYTES)
        if struct.unpack_from("<Q", locator, 8)[0] != end or record[:4] != _END_64:
            raise _refusal("its zip64 records lie elsewhere than they should")
        count, length, start = struct.unpack_from("<QQQ", record, 32)
    if start + length != end or length > MAX_DIRECTORY_BYTES:
        raise _refusal("its directory does not lie where it should")
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # noqa: BLE001 hostile directories make zipfile raise anything
        raise _refusal(f"its directory is damaged: {error}") from error
    if not entries or len(entries) != count:
        raise _refusal(f"its directory has {len(entries)} entries and not {count}")
    return entries


def _entry(file: BinaryIO, size: int, entry: zipfile.ZipInfo) -> bytes:
    """The bytes of a stored entry, found by its local header as miniz finds them."""
    # A zip64 field could be understood in two ways; none is needed this near the start.
    if entry.extra or entry.file_size > MAX_PICKLE_BYTES:
        raise _refusal(f"{entry.filename} is too long, or has fields that torch.save does not write")
    header = _read(file, entry.header_offset, 30)
    if header[:4] != _LOCAL or len(header) < 30:
        raise _refusal(f"{entry.filename} does not lie where it should")
    # Name length at 26, extra length at 28 (APPNOTE 4.3.7).
    start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
    if start + entry.file_size > size:
        raise _refusal(f"{entry.filename} is cut off")
    return _read(file, start, entry.file_size)


def _read(file: BinaryIO, start: int, count: int) -> bytes:
    if start < 0:
        return b""
    file.seek(start)
    return file.read(count)


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _refusal(message: str) -> CheckpointError:
    return CheckpointError(message, "use another checkpoint")
