"""What happens to numbers on the way: 4-bit blocks become BF16, matrices are transposed, types change.

In numpy, which starts in a tenth of the time that torch takes. It has no BF16: such numbers are held as
their bits, 16-bit integers, and computed with where a result is exact or rounded in one known way.

Transposing 2-byte values one by one is slow; moved in pairs, as one 4-byte value, they take half the
time. The low half of a pair is the even column: little-endian machines only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.errors import CheckpointError
from engine.workers.stream import scratch

type Array = np.ndarray[Any, Any]
type DType = np.dtype[Any]

BF16: DType = np.dtype(np.uint16)
"""The bits of BF16 numbers; no other 16-bit integers are in a checkpoint of weights."""
FP32: DType = np.dtype(np.float32)
U8: DType = np.dtype(np.uint8)

DTYPES = {"bf16": BF16, "fp32": FP32}
OF_SAFETENSORS = {"BF16": BF16, "F32": FP32, "U8": U8}
OF_TORCH = {"bfloat16": BF16, "float32": FP32}

_PAIR = {2: np.dtype(np.uint32), 4: np.dtype(np.uint64)}
_BITS = {2: np.dtype(np.uint16), 4: np.dtype(np.uint32)}
_SLAB, _RUN = 96, 512
"""Columns and rows that are moved at once: what they need stays in the processor's cache."""
_TAKEN_AT_ONCE = 1 << 14
"""Bytes looked up at once; numpy makes an 8-byte index of each."""
_CAST_AT_ONCE = 1 << 16

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXPONENT_BIAS = 127
MAX_SCALE = 252
"""With a larger one 6 x 2^(scale - 127) is infinite in BF16; 255 is MXFP4's NaN."""


def _pair_table() -> Array:
    """For each scale and each byte its two values as one 32-bit word of two BF16 numbers, the low nibble first."""
    byte = np.arange(256)
    pairs = np.array(_FP4, FP32)[np.stack([byte & 15, byte >> 4], 1)]
    factors = np.ldexp(np.float32(1), np.arange(MAX_SCALE + 1) - _EXPONENT_BIAS).astype(FP32)
    # Exact: the lower half of each of these is zero.
    words = (factors[:, None, None] * pairs).view(np.uint32) >> 16
    return words.astype(BF16).view(np.uint32).ravel()


_PAIRS = _pair_table()


def dequantize(blocks: Array, scales: Array, slot: str = "dequantized") -> Array:
    """MXFP4 [rows, blocks, 16] with scales [rows, blocks] as BF16 [rows, blocks x 32], in scratch memory.

    Exact: a 4-bit value times a power of two is a BF16 number. Equal bit for bit to
    megatron/bridge/models/conversion/quantization_utils.py, dequantize_mxfp4.
    """
    rows = blocks.shape[0]
    words = scratch.empty(slot, tuple(blocks.shape), np.dtype(np.uint32))
    step = max(1, _TAKEN_AT_ONCE // blocks[0].size)
    indices = scratch.empty("indices", (step, *blocks.shape[1:]), np.dtype(np.intp))
    for start in range(0, rows, step):
        part = blocks[start : start + step]
        index = indices[: len(part)]
        index[...] = part
        index += (scales[start : start + step].astype(np.intp) << 8)[..., None]
        # "clip" writes straight into `out`; no index can be out of range, the scales were looked at.
        np.take(_PAIRS, index, out=words[start : start + step], mode="clip")
    return words.view(BF16).reshape(rows, -1)


def cast(values: Array, dtype: DType) -> Array:
    """`values` as `dtype`, themselves where they are of it; to BF16 rounded to the nearest, ties to even.

    Finite numbers only.
    """
    if values.dtype == dtype:
        return values
    made: Array = np.empty(values.shape, dtype)
    flat, out = np.ascontiguousarray(values).reshape(-1), made.reshape(-1)
    for start in range(0, flat.size, _CAST_AT_ONCE):
        part = slice(start, start + _CAST_AT_ONCE)
        if dtype == FP32:
            widened: Array = flat[part].astype(np.uint32)
            widened <<= 16
            out[part] = widened.view(FP32)
        else:
            exact: Array = flat[part].view(np.uint32)
            rounded = (exact >> 16) & 1
            rounded += 0x7FFF
            rounded += exact
            rounded >>= 16
            out[part] = rounded
    return made


def bits(values: Array) -> Array:
    """The values as integers: two are equal when every bit is."""
    return values.view(_BITS[values.itemsize])


def split_transposed(matrix: Array) -> tuple[Array, Array]:
    """The even and the odd columns of `matrix`, each transposed, in scratch memory: [rows, 2n] -> two [n, rows]."""
    rows, columns = matrix.shape
    even, odd = scratch.empty("transposed", (2, columns // 2, rows), matrix.dtype)
    _split(matrix, even, odd)
    return even, odd


def transposed(matrix: Array) -> Array:
    """`matrix`.T, contiguous, in scratch memory."""
    rows, columns = matrix.shape
    out = scratch.empty("transposed", (columns, rows), matrix.dtype)
    if columns % 2:
        out[...] = matrix.T
    else:
        _split(matrix, out[::2], out[1::2])
    return out


def join_transposed(even: Array, odd: Array) -> Array:
    """The matrix whose `split_transposed` this is, in scratch memory."""
    half, rows = even.shape
    pair = _PAIR[even.itemsize]
    out = scratch.empty("transposed", (rows, half), pair)
    for start in range(0, half, _SLAB):
        slab = slice(start, start + _SLAB)
        pairs: Array = bits(odd[slab]).astype(pair)
        pairs <<= 8 * even.itemsize
        pairs |= bits(even[slab])
        for row in range(0, rows, _RUN):
            out[row : row + _RUN, slab] = pairs[:, row : row + _RUN].T
    return out.view(even.dtype)


def _split(matrix: Array, even: Array, odd: Array) -> None:
    pairs: Array = np.ascontiguousarray(matrix).view(_PAIR[matrix.itemsize])
    rows, columns = pairs.shape
    slab = scratch.empty("slab", (_SLAB, rows), pairs.dtype)
    for start in range(0, columns, _SLAB):
        part = slice(start, min(start + _SLAB, columns))
        moved = slab[: part.stop - start]
        for row in range(0, rows, _RUN):
            moved[:, row : row + _RUN] = pairs[row : row + _RUN, part].T
        # A copy to a narrower integer keeps the low half.
        bits(even)[part] = moved
        moved >>= 8 * matrix.itemsize
        bits(odd)[part] = moved


def require_finite(values: Array, name: str) -> None:
    """Raise CheckpointError for a NaN or an infinity; `name` says where."""
    size = values.itemsize
    # As integers the numbers of either sign are in order: beyond the infinity are the NaNs.
    infinity = 0x7F80 << 8 * size - 16
    unsigned = bits(values)
    if values.size and (
        int(unsigned.max()) >= infinity | 1 << 8 * size - 1 or int(unsigned.view(f"i{size}").max()) >= infinity
    ):
        raise CheckpointError(f"{name} holds NaN or infinite values", "use another checkpoint: this one is damaged")


def require_finite_scales(scales: Array, name: str) -> None:
    """The same for MXFP4: only a scale can make a value infinite."""
    if scales.size and int(scales.max()) > MAX_SCALE:
        raise CheckpointError(
            f"{name} holds a scale of {int(scales.max())}, which makes its values infinite",
            "use another checkpoint: this one is damaged",
        )
