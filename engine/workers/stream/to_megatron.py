"""The tensors of a Megatron checkpoint, made one by one from a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.checkpoints import tensors
from engine.checkpoints.tensors import DOWN, FC1, FC2, GATE_UP, QKV, layer_name
from engine.workers.stream.reading import HuggingFaceReader
from engine.workers.stream.values import Array, DType, cast, dequantize, split_transposed, transposed


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A box of one Megatron tensor with its values, contiguous."""

    key: str
    offsets: tuple[int, ...]
    values: Array


class ToMegatron:
    """What each Megatron tensor is made of. The mapping is that of gpt_oss_bridge.py (megatron-bridge 0.6.2)."""

    def __init__(self, reader: HuggingFaceReader, dtype: DType) -> None:
        self._reader = reader
        self._model = reader.checkpoint.model
        self._dtype = dtype

    def rows(self, name: str, start: int, stop: int) -> Piece:
        """Rows of a tensor outside the layers."""
        values = cast(self._reader.rows(name, start, stop), self._dtype)
        return Piece(key=tensors.RENAMED_GLOBAL[name], offsets=(start,) + (0,) * (values.ndim - 1), values=values)

    def layer(self, layer: int) -> Iterator[Piece]:
        """Everything of one layer but its experts."""
        for name, key in tensors.RENAMED_IN_LAYER.items():
            yield self._in_layer(layer, key, self._whole(layer, name))
        for part in ("weight", "bias"):
            yield self._in_layer(layer, f"{QKV}.{part}", self._qkv(layer, part))

    def expert(self, layer: int, expert: int) -> Iterator[Piece]:
        """One expert: gate and up are kept apart, so that tensor parallelism can cut both."""
        ffn = self._model.ffn
        for part, halves in (
            ("weight", self._gate_and_up(layer, expert)),
            ("bias", self._halves(self._expert(layer, f"{GATE_UP}_bias", expert))),
        ):
            for number, half in enumerate(halves):
                key, rest = f"{FC1}.{part}", (0,) * (half.ndim - 1)
                yield Piece(key=key, offsets=(layer, expert, number * ffn, *rest), values=half[None, None])
        down = self._down(layer, expert)
        yield Piece(key=f"{FC2}.weight", offsets=(layer, expert, 0, 0), values=down[None, None])
        bias = self._expert(layer, f"{DOWN}_bias", expert)
        yield Piece(key=f"{FC2}.bias", offsets=(layer, expert, 0), values=bias[None, None])

    def _gate_and_up(self, layer: int, expert: int) -> tuple[Array, Array]:
        """Both [ffn, hidden]; Hugging Face keeps their columns (rows, when transposed) alternating."""
        name = layer_name(layer, GATE_UP)
        if self._reader.checkpoint.is_mxfp4:
            return self._blocks(name, expert, slice(0, None, 2), "gate"), self._blocks(
                name, expert, slice(1, None, 2), "up"
            )
        matrix = cast(self._reader.rows(name, expert, expert + 1)[0], self._dtype)
        if self._reader.checkpoint.is_transposed(name):
            return self._halves(matrix)
        return split_transposed(matrix)

    def _down(self, layer: int, expert: int) -> Array:
        """[hidden, ffn]"""
        name = layer_name(layer, DOWN)
        if self._reader.checkpoint.is_mxfp4:
            return self._blocks(name, expert, slice(None), "down")
        matrix = cast(self._reader.rows(name, expert, expert + 1)[0], self._dtype)
        return matrix if self._reader.checkpoint.is_transposed(name) else transposed(matrix)

    def _blocks(self, name: str, expert: int, rows: slice, slot: str) -> Array:
        blocks, scales = (self._reader.rows(f"{name}_{x}", expert, expert + 1)[0] for x in ("blocks", "scales"))
        return cast(dequantize(blocks[rows], scales[rows], slot), self._dtype)

    def _halves(self, values: Array) -> tuple[Array, Array]:
        return np.ascontiguousarray(values[::2]), np.ascontiguousarray(values[1::2])

    def _qkv(self, layer: int, part: str) -> Array:
        """Query, key and value rows group by group: the heads that share a key follow one another."""
        groups, width = self._model.kv_heads, self._model.head_dim
        q, k, v = (self._whole(layer, f"self_attn.{name}_proj.{part}") for name in "qkv")
        grouped = [x.reshape(groups, -1, width, *x.shape[1:]) for x in (q, k, v)]
        return np.concatenate(grouped, 1).reshape(-1, *k.shape[1:])

    def _in_layer(self, layer: int, key: str, values: Array) -> Piece:
        return Piece(key=key, offsets=(layer,) + (0,) * values.ndim, values=values[None])

    def _whole(self, layer: int, name: str) -> Array:
        return cast(self._reader.whole(layer_name(layer, name)), self._dtype)

    def _expert(self, layer: int, name: str, expert: int) -> Array:
        return cast(self._reader.rows(layer_name(layer, name), expert, expert + 1)[0], self._dtype)
