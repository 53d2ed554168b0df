"""Hugging Face -> Megatron: write the checkpoint that Bridge would write, without holding the model."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.checkpoints import hugging_face, tensors
from engine.checkpoints import tokenizer as tokenizers
from engine.checkpoints.hugging_face import HuggingFaceCheckpoint
from engine.checkpoints.torch_dist import METADATA
from engine.models import Model
from engine.workers.stream import bridge_files, manifest, metadata, resources, scratch
from engine.workers.stream.bridge_files import COMMON_KEY, COMMON_STATE, ITERATION
from engine.workers.stream.files import OnProgress, OutputFile, Unit, making, publish, write_all
from engine.workers.stream.frame import frame, saved
from engine.workers.stream.manifest import fingerprint
from engine.workers.stream.reading import HuggingFaceReader
from engine.workers.stream.to_hugging_face import PIECE_BYTES
from engine.workers.stream.to_megatron import Piece, ToMegatron
from engine.workers.stream.values import DTYPES, DType

UNIT_BYTES = 512 << 20
"""About the size of one file: many enough for every thread, few enough for any file system."""

_TORCH_NAMES = {"bf16": "bfloat16", "fp32": "float32"}

type _Entry = list[Any]
"""Of the journal: key, offsets or None for an object, sizes, start, length."""


def convert(
    source: Path,
    out: Path,
    dtype: str,
    *,
    on_progress: OnProgress | None = None,
    tokenizer: str = "",
    threads: int = 0,
) -> dict[str, Any]:
    """Make the Megatron checkpoint `out` from the Hugging Face directory `source`; `dtype` is bf16 or fp32.

    `out` appears when it is complete and replaces what was there; an interrupted conversion goes on
    where it was. `tokenizer` is the path that Bridge shall find the tokenizer at. Raises CheckpointError
    or SettingsError for a bad source, PreflightError when memory or disk are short, StepFailed when
    writing fails.
    """
    started = time.monotonic()
    scratch.return_large_blocks()
    checkpoint = hugging_face.read(source)
    model = checkpoint.model
    tokenizers.require_fitting(source, model, checkpoint.config)
    size_bytes = model.parameters * DTYPES[dtype].itemsize
    threads = resources.threads_for(_thread_bytes(checkpoint, dtype), threads)
    identity = {"to": "megatron", "dtype": dtype, "source": fingerprint(checkpoint)}
    with making(out, identity) as partial, HuggingFaceReader(checkpoint) as reader:
        folder = partial / ITERATION
        folder.mkdir(exist_ok=True)
        there = sum(path.stat().st_size for path in folder.glob("*.distcp"))
        resources.require_disk(partial, size_bytes, there)
        units = _units(ToMegatron(reader, DTYPES[dtype]), model, DTYPES[dtype])
        written = write_all(units, folder, partial / "journal.jsonl", threads, on_progress)
        _write_metadata(folder, metadata.pickled(written, tensors.megatron(model), _TORCH_NAMES[dtype]))
        small = bridge_files.write(partial, model, dtype, source, tokenizer or str(source.absolute()))
        facts = {"kind": "megatron", "from": str(source), "dtype": dtype, "parameters": model.parameters}
        manifest.write(partial, facts, folder, written, [*small, folder / METADATA])
        publish(partial, out)
    seconds = time.monotonic() - started
    return {
        "checkpoint": str(out),
        "parameters": model.parameters,
        "bytes": sum(one.size_bytes for one in written),
        "files": len(written),
        "threads": threads,
        "seconds": round(seconds, 2),
    }


def _thread_bytes(checkpoint: HuggingFaceCheckpoint, dtype: str) -> int:
    """The most that one thread holds: the largest matrix as it was read, as it is written, and on the way."""
    model, item = checkpoint.model, DTYPES[dtype].itemsize
    expert = 2 * model.ffn * model.hidden
    attention = (model.query_width + 2 * model.kv_width) * model.hidden
    source = max(tensor.size_bytes // math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    return max(expert, attention, PIECE_BYTES // item) * (2 * item + source)


def _units(make: ToMegatron, model: Model, dtype: DType) -> list[Unit]:
    """The files to write; the layers' largest parts first would help nothing, all are alike."""
    units: list[Unit] = []

    def add(size_bytes: int, pieces: Any) -> None:
        name = f"__{len(units)}_0.distcp"
        units.append(Unit(name=name, size_bytes=size_bytes, write=lambda file: _write_pieces(file, pieces())))

    item, row = dtype.itemsize, model.hidden * dtype.itemsize
    for name, shape in tensors.hugging_face(model).items():
        if name in tensors.RENAMED_GLOBAL:
            step = max(1, UNIT_BYTES // row)
            for start in range(0, shape[0], step):
                stop = min(start + step, shape[0])
                count = (stop - start) * math.prod(shape[1:])
                add(
                    count * item,
                    lambda name=name, start=start, stop=stop: _rows(make, name, start, stop, row),
                )
    group = max(1, UNIT_BYTES // (model.expert_parameters * item))
    rest = model.layer_parameters - model.experts * model.expert_parameters
    for layer in range(model.layers):
        for first in range(0, model.experts, group):
            experts = range(first, min(first + group, model.experts))
            count = len(experts) * model.expert_parameters + (0 if first else rest)
            add(count * item, lambda layer=layer, experts=experts: _layer(make, layer, experts, model))
    add(0, lambda: [(COMMON_KEY, saved([COMMON_STATE]))])
    return units


def _rows(make: ToMegatron, name: str, start: int, stop: int, row_bytes: int) -> Iterable[Piece]:
    step = max(1, PIECE_BYTES // row_bytes)
    for first in range(start, stop, step):
        yield make.rows(name, first, min(first + step, stop))


def _layer(make: ToMegatron, layer: int, experts: range, model: Model) -> Iterable[Piece | tuple[str, bytes]]:
    empty = saved([None])  # what a layer without 8-bit scales keeps
    if experts.start == 0:
        yield from make.layer(layer)
        for key in tensors.EXTRA_STATES:
            yield f"{key}._extra_state/shard_{layer}_{model.layers}", empty
    for expert in experts:
        yield from make.expert(layer, expert)
        for key in tensors.EXPERT_EXTRA_STATES:
            yield f"{key}._extra_state/shard_{layer}.{expert}_{model.layers}.{model.experts}", empty


def _write_pieces(file: OutputFile, pieces: Iterable[Piece | tuple[str, bytes]]) -> list[_Entry]:
    entries: list[_Entry] = []
    for piece in pieces:
        start = file.position
        if isinstance(piece, Piece):
            shape = tuple(piece.values.shape)
            head, tail = frame(shape, piece.values.dtype)
            file.put(head)
            file.put(piece.values, piece.key)
            file.put(tail)
            entries.append([piece.key, list(piece.offsets), list(shape), start, file.position - start])
        else:
            key, data = piece
            file.put(data)
            entries.append([key, None, None, start, len(data)])
    return entries


def _write_metadata(folder: Path, content: bytes) -> None:
    """`.metadata`; last, because it makes the checkpoint complete."""
    made = folder / f"{METADATA}.tmp"
    with made.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    made.rename(folder / METADATA)
