"""The header of a safetensors file: which tensors it holds and where. The values are not read.

Format: 8 bytes little-endian length, that many bytes of JSON, then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.paths import open_file

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MAX_AXES = 64
"""Of a tensor; torch's own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor's place on disk."""

    name: str
    file: Path
    dtype: str
    """As safetensors spells it: BF16, F32, U8, …"""
    shape: tuple[int, ...]
    start: int
    """Byte offset in `file`."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of `file` by name. Raises CheckpointError when the file is cut off or damaged."""
    try:
        size = file.stat().st_size
        with open_file(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _damaged(file, f"its header of {length:,} bytes does not fit into {size:,} bytes")
            header = json.loads(stream.read(length))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", "check the path and permissions") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, f"its header is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(file, name, entry, 8 + length) for name, entry in header.items()}
    _check_extent(file, size, 8 + length, tensors)
    return tensors


def make_header(shapes: dict[str, tuple[int, ...]], dtype: str) -> tuple[bytes, dict[str, int]]:
    """The head of a file with these tensors in this order, and each tensor's byte offset in the file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        starts[name] = start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + start for name, start in starts.items()}


def _tensor(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        start, end = (int(offset) for offset in entry["data_offsets"])
        if len(shape) > MAX_AXES or not all(abs(number) < 1 << 63 for number in (*shape, start, end)):
            raise ValueError  # their product could take minutes
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise _damaged(file, f"the entry of {name} is not understood") from error
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{file.name}: {name} has the type {dtype}", "gpt-oss comes in BF16 and MXFP4 (U8)")
    tensor = StoredTensor(name=name, file=file, dtype=dtype, shape=shape, start=data_start + start)
    if min(shape, default=1) < 0 or start < 0 or tensor.size_bytes != end - start:
        raise _damaged(file, f"{name} {list(shape)} {dtype} does not fill its {end - start:,} bytes")
    return tensor


def _check_extent(file: Path, size: int, data_start: int, tensors: dict[str, StoredTensor]) -> None:
    end = data_start
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        if tensor.start < end:
            raise _damaged(file, f"{tensor.name} overlaps another tensor")
        end = tensor.start + tensor.size_bytes
        if end > size:
            raise CheckpointError(
                f"{file} is cut off: {tensor.name} ends at byte {end:,} and the file has {size:,}",
                "download that shard again",
            )


def _damaged(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is no safetensors file: {what}", "download that shard again")
