"""The tensors of a Hugging Face checkpoint, piece by piece, from either kind of checkpoint.

A piece is a range of the first axis: rows of a matrix, or one expert. Pieces of one tensor, in
order, are its bytes; that is what the export writes and what the comparison compares.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from engine.checkpoints import tensors
from engine.checkpoints.tensors import DOWN, FC1, FC2, GATE_UP, QKV, Shape
from engine.models import Model
from engine.workers.stream.reading import HuggingFaceReader, MegatronReader
from engine.workers.stream.values import Array, dequantize, join_transposed, transposed

PIECE_BYTES = 32 << 20
"""Rows of the embedding that are moved at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A range of the first axis of one Hugging Face tensor."""

    name: str
    shape: Shape
    """Of the whole tensor."""
    start: int
    stop: int

    @property
    def is_in_layer(self) -> bool:
        return self.name not in tensors.RENAMED_GLOBAL

    @property
    def layer(self) -> int:
        """Number of the layer; ValueError outside the layers."""
        return int(self.name.split(".")[2])

    @property
    def suffix(self) -> str:
        """The name within the layer."""
        return self.name.split(".", 3)[3]


class Source(Protocol):
    """Gives the values of a part, as transformers would save them; good until it is asked for the next."""

    def values(self, part: Part) -> Array: ...


def parts(name: str, shape: Shape, item_bytes: int) -> Iterator[Part]:
    """The pieces of a tensor in order: one expert each, or as many rows as fit into `PIECE_BYTES`."""
    row_bytes = math.prod(shape[1:]) * item_bytes
    step = 1 if tensors.is_expert_weight(name) else max(1, PIECE_BYTES // row_bytes)
    for start in range(0, shape[0], step):
        yield Part(name=name, shape=shape, start=start, stop=min(start + step, shape[0]))


def qkv_rows(reader: MegatronReader, model: Model, key: str, layer: int, projection: str, rest: Shape) -> Array:
    """The rows of q, k or v of the joint tensor `key` [layers, rows, *rest], where they lie group by group."""
    width, groups = model.head_dim, model.kv_heads
    per_group = model.heads // groups
    first, count = {"q_proj": (0, per_group), "k_proj": (per_group, 1), "v_proj": (per_group + 1, 1)}[projection]
    stride = (per_group + 2) * width
    found = [
        reader.box(
            key,
            (layer, group * stride + first * width, *(0 for _ in rest)),
            (1, count * width, *rest),
        )[0].copy()
        for group in range(groups)
    ]
    return np.concatenate(found)


class FromHuggingFace:
    """A Hugging Face checkpoint itself, its 4-bit blocks as BF16 and its experts as [expert, in, out]."""

    def __init__(self, reader: HuggingFaceReader) -> None:
        self._reader = reader

    def values(self, part: Part) -> Array:
        if not tensors.is_expert_weight(part.name):
            return self._reader.rows(part.name, part.start, part.stop)
        checkpoint = self._reader.checkpoint
        if checkpoint.is_mxfp4:
            blocks, scales = (
                self._reader.rows(f"{part.name}_{x}", part.start, part.stop)[0] for x in ("blocks", "scales")
            )
            return transposed(dequantize(blocks, scales))[None]
        matrix = self._reader.rows(part.name, part.start, part.stop)
        return transposed(matrix[0])[None] if checkpoint.is_transposed(part.name) else matrix


class FromMegatron:
    """A Megatron checkpoint, each part put together from the boxes that it is made of."""

    def __init__(self, reader: MegatronReader, model: Model) -> None:
        self._reader = reader
        self._model = model

    def values(self, part: Part) -> Array:
        if not part.is_in_layer:
            key, rest = tensors.RENAMED_GLOBAL[part.name], part.shape[1:]
            return self._reader.box(key, (part.start,) + (0,) * len(rest), (part.stop - part.start, *rest))
        if part.suffix in tensors.RENAMED_IN_LAYER:
            return self._rows(tensors.RENAMED_IN_LAYER[part.suffix], part)
        if part.suffix.startswith("self_attn."):
            return self._attention(part)
        experts = {
            GATE_UP: self._gate_up,
            f"{GATE_UP}_bias": self._gate_up_bias,
            DOWN: self._down,
            f"{DOWN}_bias": self._down_bias,
        }
        make = experts[part.suffix]
        if part.stop - part.start == 1:
            return make(part.layer, part.start)[None]
        return np.stack([make(part.layer, expert) for expert in range(part.start, part.stop)])

    def _rows(self, key: str, part: Part) -> Array:
        rest = part.shape[1:]
        offsets = (part.layer, part.start, *(0 for _ in rest))
        return self._reader.box(key, offsets, (1, part.stop - part.start, *rest))[0]

    def _attention(self, part: Part) -> Array:
        _, projection, kind = part.suffix.split(".")
        found = qkv_rows(self._reader, self._model, f"{QKV}.{kind}", part.layer, projection, part.shape[1:])
        return found[part.start : part.stop]

    def _gate_up(self, layer: int, expert: int) -> Array:
        gate, up = (
            self._reader.box(
                f"{FC1}.weight",
                (layer, expert, half * self._model.ffn, 0),
                (1, 1, self._model.ffn, self._model.hidden),
                slot=f"half {half}",
            )[0, 0]
            for half in (0, 1)
        )
        return join_transposed(gate, up)

    def _gate_up_bias(self, layer: int, expert: int) -> Array:
        both = self._reader.box(f"{FC1}.bias", (layer, expert, 0), (1, 1, 2 * self._model.ffn))[0, 0]
        return both.reshape(2, -1).T.reshape(-1)

    def _down(self, layer: int, expert: int) -> Array:
        sizes = (1, 1, self._model.hidden, self._model.ffn)
        return transposed(self._reader.box(f"{FC2}.weight", (layer, expert, 0, 0), sizes)[0, 0])

    def _down_bias(self, layer: int, expert: int) -> Array:
        return self._reader.box(f"{FC2}.bias", (layer, expert, 0), (1, 1, self._model.hidden))[0, 0].copy()
