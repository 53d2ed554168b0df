"""`.metadata`, the pickle in which torch finds the chunks of a checkpoint, written without torch.

The classes here stand for torch's of the same names (torch/distributed/checkpoint/metadata.py and
filesystem.py, torch 2.13): equal names and equal fields make an equal pickle. Importing the real ones
takes longer than converting 1 GB.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from engine.checkpoints.tensors import Shape
from engine.workers.stream.files import Written
from engine.workers.stream.torch_pickle import Call, Global, dumps

_PROTOCOL = 4
_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_SIZE = Global("torch", "Size")
_STRIDED = Call(Global("torch.serialization", "_get_layout"), ("torch.strided",))
_CONTIGUOUS = Call(Global(_METADATA, "_MEM_FORMAT_ENCODING"), (0,))


class _Record:
    """An object of which a pickle holds its class and its fields."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Metadata(_Record):
    __module__ = _METADATA


class TensorStorageMetadata(_Record):
    __module__ = _METADATA


class BytesStorageMetadata(_Record):
    __module__ = _METADATA


class ChunkStorageMetadata(_Record):
    __module__ = _METADATA


class MetadataIndex(_Record):
    __module__ = _METADATA


class StorageMeta(_Record):
    __module__ = _METADATA


class TensorProperties:
    """Its fields travel as a row: type, layout, whether it has a gradient, order in memory, whether it is pinned."""

    __module__ = _METADATA

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype

    def __getstate__(self) -> tuple[Any, ...]:
        return Global("torch", self._dtype), _STRIDED, False, _CONTIGUOUS, False


class _StorageInfo(_Record):
    __module__ = _FILES


def pickled(written: Iterable[Written], shapes: Mapping[str, Shape], dtype: str) -> bytes:
    """The content of `.metadata`, from what the journal knows of every file; `dtype` as torch spells it."""
    known: dict[str, Any] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    for one in written:
        for key, offsets, sizes, start, length in one.facts:
            if offsets is None:
                known[key] = BytesStorageMetadata()
                index = MetadataIndex(fqn=key, index=None)
            else:
                if key not in known:
                    properties, size = TensorProperties(dtype), _size(shapes[key])
                    known[key] = TensorStorageMetadata(properties=properties, size=size, chunks=[])
                known[key].chunks.append(ChunkStorageMetadata(offsets=_size(offsets), sizes=_size(sizes)))
                index = MetadataIndex(fqn=key, index=None, offset=_size(offsets))
            places[index] = _StorageInfo(relative_path=one.name, offset=start, length=length)
    meta = StorageMeta(checkpoint_id=None, save_id=str(uuid.uuid4()), load_id=None, modules=[])
    root = Metadata(state_dict_metadata=known, planner_data=None, storage_data=places, storage_meta=meta, version=None)
    return dumps(root, _PROTOCOL)


def _size(sizes: Iterable[int]) -> Call:
    return Call(_SIZE, (tuple(sizes),))
