"""Parts of tensors from either kind of checkpoint, read when they are asked for and not kept.

Plain reads, no memory map: mapped pages would count as this process's memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from engine.checkpoints import torch_dist
from engine.checkpoints.hugging_face import HuggingFaceCheckpoint
from engine.checkpoints.torch_dist import Chunk, DistributedCheckpoint, RawTensor
from engine.errors import CheckpointError
from engine.paths import open_file
from engine.workers.stream import scratch
from engine.workers.stream.values import (
    OF_SAFETENSORS,
    OF_TORCH,
    U8,
    Array,
    DType,
    require_finite,
    require_finite_scales,
)


class _OpenFiles:
    """Files that stay open while a checkpoint is read; several threads may read at once."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.descriptor = cache(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self, path: Path) -> int:
        try:
            return self._stack.enter_context(open_file(path)).fileno()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error

    def read(self, path: Path, start: int, shape: Sequence[int], dtype: DType, slot: str) -> Array:
        """The values from byte `start` on, in scratch memory. Raises CheckpointError when the file ends before."""
        values = scratch.empty(slot, tuple(shape), dtype)
        view = memoryview(values.reshape(-1).view(U8))
        self.read_into(path, start, view)
        return values

    def read_into(self, path: Path, start: int, view: memoryview) -> None:
        descriptor, done = self.descriptor(path), 0
        while done < len(view):
            try:
                count = os.preadv(descriptor, [view[done:]], start + done)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}", "check the disk") from error
            if count == 0:
                raise CheckpointError(f"{path} became shorter while it was read", "write nothing there meanwhile")
            done += count


class HuggingFaceReader(_OpenFiles):
    """The tensors of a Hugging Face checkpoint; every value read is finite."""

    def __init__(self, checkpoint: HuggingFaceCheckpoint) -> None:
        super().__init__()
        self.checkpoint = checkpoint

    def rows(self, name: str, start: int, stop: int, slot: str = "") -> Array:
        """Entries `start` to `stop` of the first axis, in scratch memory (`slot`, or one of this tensor's own kind).

        Raises CheckpointError, for NaN as well.
        """
        stored = self.checkpoint.tensors[name]
        row_bytes = stored.size_bytes // stored.shape[0]
        shape = (stop - start, *stored.shape[1:])
        slot = slot or name.rpartition(".")[2]
        values = self.read(stored.file, stored.start + start * row_bytes, shape, OF_SAFETENSORS[stored.dtype], slot)
        if name.endswith("_scales"):
            require_finite_scales(values, f"{name} of {stored.file.name}")
        elif values.dtype != U8:
            require_finite(values, f"{name} of {stored.file.name}")
        return values

    def whole(self, name: str) -> Array:
        """All of one tensor, in scratch memory of its own."""
        return self.rows(
            name,
            0,
            self.checkpoint.tensors[name].shape[0],
            slot=name.partition("layers.")[2].partition(".")[2],
        )


class MegatronReader(_OpenFiles):
    """The tensors of a Megatron checkpoint, however the ranks that saved it shared them."""

    def __init__(self, checkpoint: DistributedCheckpoint) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self._raw = cache(self._find)
        self._by_leading = {key: _by_leading(tensor.chunks) for key, tensor in checkpoint.tensors.items()}

    def box(self, key: str, offsets: Sequence[int], sizes: Sequence[int], slot: str = "box") -> Array:
        """A box of one tensor, in scratch memory. Raises CheckpointError when a part of it is nowhere, or is NaN."""
        tensor = self.checkpoint.tensors[key]
        values = scratch.empty(slot, tuple(sizes), OF_TORCH[tensor.dtype])
        found = 0
        for chunk in self._candidates(key, offsets, sizes):
            low = [max(a, b) for a, b in zip(offsets, chunk.offsets, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, chunk.offsets, chunk.sizes, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            part = self._part(key, chunk, low, high, f"{slot} part")
            found += part.size
            if part.size == values.size:
                values = part
                break
            inside = tuple(slice(a - o, b - o) for a, b, o in zip(low, high, offsets, strict=True))
            values[inside] = part
        if found != values.size:
            raise CheckpointError(f"{key} lacks a part of {list(sizes)} at {list(offsets)}", "use another checkpoint")
        require_finite(values, f"{key} at {list(offsets)}")
        return values

    def _candidates(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Sequence[Chunk]:
        """The chunks that can touch the box: an expert's tensor has thousands, one layer of them is enough."""
        every = self.checkpoint.tensors[key].chunks
        places = self._by_leading[key]
        if places and sizes[0] == 1:
            return places.get((offsets[0], offsets[1]) if sizes[1] == 1 else (offsets[0],), every)
        return every

    def _part(self, key: str, chunk: Chunk, low: Sequence[int], high: Sequence[int], slot: str) -> Array:
        """The box from `low` to `high` of one chunk; rows outside it are not read."""
        raw = self._raw(key, chunk)
        lead = next((axis for axis, size in enumerate(raw.shape) if size > 1), 0)
        first, last = low[lead] - chunk.offsets[lead], high[lead] - chunk.offsets[lead]
        row = math.prod(raw.shape[lead + 1 :])
        shape = (*raw.shape[:lead], last - first, *raw.shape[lead + 1 :])
        start = raw.start + first * row * torch_dist.ITEM_BYTES[raw.dtype]
        values = self.read(self.checkpoint.path / chunk.file, start, shape, OF_TORCH[raw.dtype], slot)
        rest = tuple(
            slice(None) if axis <= lead else slice(a - o, b - o)
            for axis, (a, b, o) in enumerate(zip(low, high, chunk.offsets, strict=True))
        )
        return values[rest]

    def _find(self, key: str, chunk: Chunk) -> RawTensor:
        return torch_dist.raw_tensor(self.descriptor(self.checkpoint.path / chunk.file), chunk, key)


def _by_leading(chunks: Sequence[Chunk]) -> dict[tuple[int, ...], list[Chunk]]:
    """Chunks by (layer,), and by (layer, expert) where each holds one; empty when they are shared otherwise."""
    if any(len(chunk.sizes) < 2 or chunk.sizes[0] != 1 for chunk in chunks):
        return {}
    has_single_experts = all(chunk.sizes[1] == 1 for chunk in chunks)
    places: dict[tuple[int, ...], list[Chunk]] = {}
    for chunk in chunks:
        places.setdefault((chunk.offsets[0],), []).append(chunk)
        if has_single_experts:
            places.setdefault((chunk.offsets[0], chunk.offsets[1]), []).append(chunk)
    return places
