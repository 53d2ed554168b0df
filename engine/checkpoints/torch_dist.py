"""A torch-distributed checkpoint (`iter_NNNNNNN/`): its tensors, their chunks, and the bytes of each.

`.metadata` is a pickle that places every chunk in a `.distcp` file; a chunk is what `torch.save`
writes, a zip archive with stored (not compressed) entries. Reads both without torch.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoints import pickles
from engine.checkpoints.pickles import Record
from engine.checkpoints.tensors import ADAPTER
from engine.errors import CheckpointError, NotFoundError, UnreadableError
from engine.paths import file_text, open_file

METADATA, BACKEND, TRACKER = ".metadata", "metadata.json", "latest_checkpointed_iteration.txt"
BACKEND_VERSION = 1
"""Of the format, as megatron-core 0.19 writes it."""
_ITERATION = re.compile(r"[0-9]{1,18}|release")
MAX_METADATA_BYTES = 1_000_000_000
MAX_PICKLE_BYTES = 16_000_000
MAX_AXES = 64
"""Of a tensor; torch's own limit."""

ITEM_BYTES = {
    "bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "uint8": 1, "int8": 1, "int16": 2, "int32": 4,
    "int64": 8, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A box of one tensor, and the archive that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of the checkpoint, over all ranks that saved it."""

    key: str
    dtype: str
    """As torch spells it: bfloat16, float32, …"""
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def is_covered(self) -> bool:
        """True when the chunks hold as many values as the tensor has."""
        return sum(math.prod(chunk.sizes) for chunk in self.chunks) == math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistributedCheckpoint:
    """One iteration of a Megatron checkpoint."""

    path: Path
    tensors: Mapping[str, Tensor]
    objects: Mapping[str, Chunk]
    """Things that are no tensors, by name."""

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the model, without those of the optimiser and the random state."""
        foreign = ("optimizer", "chained_", "rng_state", "rerun_state", "opt_param_scheduler")
        return {key: tensor for key, tensor in self.tensors.items() if not key.startswith(foreign)}

    @property
    def has_optimizer(self) -> bool:
        return any(key.startswith(("optimizer", "chained_")) for key in (*self.tensors, *self.objects))

    @property
    def has_adapters(self) -> bool:
        """True when it holds LoRA adapters, and no weights of the model."""
        return any(ADAPTER in key for key in self.weights())

    def problems(self) -> list[str]:
        """What is missing or cut off, in words; empty when the checkpoint is whole."""
        found = [
            f"{key} has a type that is not known: {one.dtype}"
            for key, one in self.tensors.items()
            if one.dtype not in ITEM_BYTES
        ]
        found += [f"{key} is only partly there" for key, tensor in self.tensors.items() if not tensor.is_covered]
        return found + self.file_problems()

    def file_problems(self) -> list[str]:
        """Which files are missing or cut off, in words."""
        return file_problems(self.path, self.file_ends())

    def file_ends(self) -> dict[str, int]:
        """How many bytes each file must have at least."""
        ends: dict[str, int] = {}
        for chunk in [*self.objects.values(), *(c for tensor in self.tensors.values() for c in tensor.chunks)]:
            ends[chunk.file] = max(ends.get(chunk.file, 0), chunk.start + chunk.length)
        return ends


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTensor:
    """Where the values of one chunk lie: row-major, without gaps."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Byte offset in the file."""


def file_problems(iteration: Path, ends: Mapping[str, int]) -> list[str]:
    """Which of the files that must have so many bytes are missing or cut off, in words. Raises UnreadableError."""
    found = []
    for name, end in sorted(ends.items()):
        try:
            size = (iteration / name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            found.append(f"{name} is missing")
            continue
        except OSError as error:
            raise UnreadableError.of(iteration / name, error) from error
        if size < end:
            found.append(f"{name} is cut off: it has {size:,} of at least {end:,} bytes")
    return found


def is_there(path: Path) -> bool:
    """Whether `path` looks like a Megatron checkpoint of any format, whole or not."""
    return (path / METADATA).exists() or (path / TRACKER).exists() or any(path.glob("iter_*"))


def find_iteration(path: Path) -> Path:
    """The newest iteration of the checkpoint at `path`, or `path` itself when it is one. Raises NotFoundError."""
    if (path / METADATA).exists():
        return path
    try:
        name = file_text(path / TRACKER).strip()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        raise NotFoundError(
            f"{path} is no Megatron checkpoint: it has neither {METADATA} nor {TRACKER}",
            "give the directory that holds iter_NNNNNNN, or one of those",
        ) from None
    except OSError as error:
        raise UnreadableError.of(path / TRACKER, error) from error
    if not _ITERATION.fullmatch(name):
        raise CheckpointError(f"{path / TRACKER} names no iteration: {name[:40]!r}", "use another checkpoint")
    found = path / (name if name == "release" else f"iter_{int(name):07d}")
    if not (found / METADATA).exists():
        raise CheckpointError(
            f"{found} is not a complete torch_dist checkpoint: it has no {METADATA}",
            "give an older iteration: " + (", ".join(sorted(p.name for p in path.glob("iter_*"))) or "there is none"),
        )
    return found


def read(iteration: Path) -> DistributedCheckpoint:
    """What `.metadata` says of one iteration. Raises CheckpointError, UnreadableError for an I/O error."""
    file = iteration / METADATA
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise CheckpointError(f"{file} is a pipe or a device", "use another checkpoint")  # reading could not end
        if status.st_size > MAX_METADATA_BYTES:
            raise CheckpointError(f"{file} is larger than {MAX_METADATA_BYTES:,} bytes", "use another checkpoint")
        with open_file(file) as opened:
            data = opened.read()
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", "check the path and permissions") from error
    except OSError as error:
        raise UnreadableError.of(file, error) from error
    _check_backend(iteration)
    root = pickles.load(data, str(file))
    try:
        return _understand(iteration, root)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise CheckpointError(f"{file} is not understood: {error}", "a newer torch wrote it? upgrade gptoss") from error


def raw_tensor(descriptor: int, chunk: Chunk, name: str) -> RawTensor:
    """Where in the open file the values of `chunk` begin. Raises CheckpointError.

    Only what `torch.save` wrote for a whole, contiguous tensor is taken.
    """
    try:
        with zipfile.ZipFile(_Window(descriptor, chunk.start, chunk.length)) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        head = entries["data.pkl"]
        if head.file_size > MAX_PICKLE_BYTES:
            raise ValueError("its description is too long")
        # Not through zipfile: torch may leave the entries' sums out.
        description = os.pread(descriptor, head.file_size, _entry_start(descriptor, chunk, head))
        shape, dtype, storage = _contiguous(pickles.load(description, name), chunk)
        entry = entries[f"data/{storage}"]
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{name} is damaged in {chunk.file}: {error}", "use another checkpoint") from error
    if entry.file_size != math.prod(shape) * ITEM_BYTES[dtype] or entry.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{name} does not fill its place in {chunk.file}", "use another checkpoint")
    return RawTensor(dtype=dtype, shape=shape, start=_entry_start(descriptor, chunk, entry))


def _entry_start(descriptor: int, chunk: Chunk, entry: zipfile.ZipInfo) -> int:
    """Where in the file the bytes of a stored entry begin."""
    start = chunk.start + entry.header_offset
    # Zip local header: name length at 26, extra length at 28 (APPNOTE 4.3.7).
    local = os.pread(descriptor, 30, start)
    return start + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _contiguous(root: Any, chunk: Chunk) -> tuple[tuple[int, ...], str, str]:
    """Shape, type and storage name of a pickled tensor: (storage, offset, size, stride, …)."""
    if type(root).__name__ == "_rebuild_parameter":
        root = root.arguments[0]
    (_, dtype, storage, _, count), offset, shape, stride = root.arguments[:4]
    expected: list[int] = []
    step = 1
    for size in reversed(shape):
        expected.insert(0, step)
        step *= size
    # The stride of an axis with one entry says nothing.
    is_dense = all(size == 1 or real == wanted for size, real, wanted in zip(shape, stride, expected, strict=True))
    if tuple(shape) != chunk.sizes or offset or not is_dense or count != step:
        raise ValueError(f"it is stored as a view of shape {tuple(shape)}")
    return tuple(shape), str(dtype), str(storage)


def _understand(iteration: Path, root: Any) -> DistributedCheckpoint:
    places: dict[tuple[str, tuple[int, ...] | None], Record] = {}
    for index, info in root.storage_data.items():
        offset = getattr(index, "offset", None)
        places[index.fqn, None if offset is None else tuple(offset)] = info
    tensors: dict[str, Tensor] = {}
    objects: dict[str, Chunk] = {}
    for key, entry in root.state_dict_metadata.items():
        # By their class, as torch tells them apart: what it takes for bytes it unpickles.
        kind = type(entry).__name__
        if not isinstance(key, str):
            raise ValueError(f"a name is a {type(key).__name__}")
        if kind == "BytesStorageMetadata":
            objects[key] = _chunk(places[key, None], (), ())
            continue
        if kind != "TensorStorageMetadata":
            raise ValueError(f"{key} is a {kind}")
        boxes = [(_numbers(box.offsets), _numbers(box.sizes)) for box in entry.chunks]
        chunks = tuple(_chunk(places[key, offsets], offsets, sizes) for offsets, sizes in boxes)
        dtype = entry.properties.state[0]
        if not isinstance(dtype, str):
            raise ValueError(f"the type of {key} is none of torch")
        tensors[key] = Tensor(key=key, dtype=dtype, shape=_numbers(entry.size), chunks=chunks)
    return DistributedCheckpoint(path=iteration, tensors=tensors, objects=objects)


def _numbers(values: Any) -> tuple[int, ...]:
    """Sizes or offsets. Raises ValueError for what no tensor and no file has, and sums could take long over."""
    found = tuple(values)
    if len(found) > MAX_AXES or not all(type(number) is int and 0 <= number < 1 << 63 for number in found):
        raise ValueError("its sizes and places are no such numbers")
    return found


def _chunk(info: Any, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Chunk:
    name = info.relative_path
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
        raise ValueError(f"a part lies outside the checkpoint: {str(name)[:80]!r}")
    os.fsencode(name)  # half a surrogate pair is a ValueError, too
    if getattr(info, "transform_descriptors", None):
        raise ValueError(f"{name} is stored as {info.transform_descriptors}")
    start, length = _numbers((info.offset, info.length))
    return Chunk(offsets=offsets, sizes=sizes, file=name, start=start, length=length)


def _check_backend(iteration: Path) -> None:
    try:
        backend = json.loads(file_text(iteration / BACKEND))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnreadableError.of(iteration / BACKEND, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{iteration / BACKEND} is damaged: {error}", "use another checkpoint") from error
    kind = backend.get("sharded_backend") if isinstance(backend, dict) else None
    if kind != "torch_dist":
        raise CheckpointError(f"{iteration} has the format {kind!r}", "torch_dist is what this version reads")
    version = backend.get("sharded_backend_version", BACKEND_VERSION)
    if version != BACKEND_VERSION:
        raise CheckpointError(
            f"{iteration} has version {version!r} of the format torch_dist; {BACKEND_VERSION} is the one that is known",
            "a newer Megatron wrote it? upgrade gptoss",
        )


class _Window(io.RawIOBase):
    """A part of an open file as a file of its own; several threads may read the same descriptor."""

    def __init__(self, descriptor: int, start: int, length: int) -> None:
        self._descriptor, self._start, self._length, self._at = descriptor, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError("seek before the beginning")
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        data = os.pread(self._descriptor, left if size < 0 else min(size, left), self._start + self._at)
        self._at += len(data)
        return data
