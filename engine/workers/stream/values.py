"""What happens to numbers on the way: 4-bit blocks become BF16, matrices are transposed.

Transposing 2-byte values one by one is slow (1 GB/s a core); moved in pairs, as one 4-byte value,
they take half the time. The low half of a pair is the even column: little-endian machines only.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.workers.stream import scratch

TORCH_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
OF_SAFETENSORS = {"BF16": torch.bfloat16, "F32": torch.float32, "U8": torch.uint8}
OF_TORCH = {"bfloat16": torch.bfloat16, "float32": torch.float32}

_PAIR = {2: torch.int32, 4: torch.int64}
_HALF = {2: torch.int16, 4: torch.int32}
_SLAB = 96
"""Rows that are moved at once: what they need stays in the processor's cache."""
_TAKEN_AT_ONCE = 1 << 16
"""Bytes looked up at once; numpy makes an 8-byte index of each."""

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXPONENT_BIAS = 127
MAX_SCALE = 252
"""With a larger one 6 x 2^(scale - 127) is infinite in BF16; 255 is MXFP4's NaN."""


def _pair_table() -> np.ndarray:
    """For each byte its two values as one 32-bit word of two BF16 numbers, the low nibble first."""
    nibbles = torch.tensor(_FP4).bfloat16()
    byte = torch.arange(256)
    pairs = torch.stack([nibbles[byte & 15], nibbles[byte >> 4]], 1).contiguous()
    return pairs.view(torch.int32).flatten().numpy()


_PAIRS = _pair_table()
_FACTORS = torch.tensor([2.0 ** (scale - _EXPONENT_BIAS) for scale in range(255)] + [float("nan")]).bfloat16()
"""What each scale multiplies with."""


def dequantize(blocks: Tensor, scales: Tensor, slot: str = "dequantized") -> Tensor:
    """MXFP4 [rows, blocks, 16] with scales [rows, blocks] as BF16 [rows, blocks x 32], in scratch memory.

    Exact: a 4-bit value times a power of two is a BF16 number. Equal bit for bit to
    megatron/bridge/models/conversion/quantization_utils.py, dequantize_mxfp4.
    """
    rows = blocks.shape[0]
    words = scratch.empty(slot, tuple(blocks.shape), torch.int32)
    step = max(1, _TAKEN_AT_ONCE // blocks[0].numel())
    for start in range(0, rows, step):
        part = slice(start, start + step)
        # "clip" writes straight into `out`; a byte cannot be out of range.
        np.take(_PAIRS, blocks[part].numpy(), out=words[part].numpy(), mode="clip")
        values = words[part].view(torch.bfloat16).view(-1, blocks.shape[1], 32)
        values *= _FACTORS[scales[part].int()].unsqueeze(-1)
    return words.view(torch.bfloat16).view(rows, -1)


def split_transposed(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The even and the odd columns of `matrix`, each transposed, in scratch memory: [rows, 2n] -> two [n, rows]."""
    rows, columns = matrix.shape
    even, odd = scratch.empty("transposed", (2, columns // 2, rows), matrix.dtype)
    _split(matrix, even, odd)
    return even, odd


def transposed(matrix: Tensor) -> Tensor:
    """`matrix`.T, contiguous, in scratch memory."""
    rows, columns = matrix.shape
    out = scratch.empty("transposed", (columns, rows), matrix.dtype)
    if columns % 2:
        out.copy_(matrix.t())
    else:
        _split(matrix, out[::2], out[1::2])
    return out


def join_transposed(even: Tensor, odd: Tensor) -> Tensor:
    """The matrix whose `split_transposed` this is, in scratch memory."""
    size = even.element_size()
    low_bits = (1 << 8 * size) - 1
    halves = even.view(_HALF[size]), odd.view(_HALF[size])
    out = scratch.empty("transposed", (even.shape[1], even.shape[0]), _PAIR[size])
    for start in range(0, even.shape[0], _SLAB):
        slab = slice(start, start + _SLAB)
        pairs = halves[1][slab].to(_PAIR[size])
        pairs <<= 8 * size
        pairs |= halves[0][slab].to(_PAIR[size]) & low_bits
        out[:, slab] = pairs.t()
    return out.view(even.dtype)


def _split(matrix: Tensor, even: Tensor, odd: Tensor) -> None:
    size = matrix.element_size()
    columns = matrix.contiguous().view(_PAIR[size]).t()
    for start in range(0, columns.shape[0], _SLAB):
        slab = slice(start, start + _SLAB)
        # Not contiguous(), which may return the source itself: what follows changes it.
        pairs = columns[slab].clone(memory_format=torch.contiguous_format)
        # A copy to a narrower integer keeps the low half.
        even.view(_HALF[size])[slab] = pairs
        pairs >>= 8 * size
        odd.view(_HALF[size])[slab] = pairs


def require_finite(tensor: Tensor, name: str) -> None:
    """Raise CheckpointError for a NaN or an infinity; `name` says where."""
    if tensor.numel() and not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
        raise CheckpointError(f"{name} holds NaN or infinite values", "use another checkpoint: this one is damaged")


def require_finite_scales(scales: Tensor, name: str) -> None:
    """The same for MXFP4: only a scale can make a value infinite."""
    if scales.numel() and int(scales.max()) > MAX_SCALE:
        raise CheckpointError(
            f"{name} holds a scale of {int(scales.max())}, which makes its values infinite",
            "use another checkpoint: this one is damaged",
        )
