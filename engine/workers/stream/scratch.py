"""Memory that each thread uses again and again: fresh pages would cost as much as the work itself."""

from __future__ import annotations

import ctypes
import math
import threading
from typing import Any

import numpy as np

_MMAP_THRESHOLD = -3  # mallopt(3)
_KEPT_BYTES = 1 << 20

_local = threading.local()


def empty(slot: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array of any values, good until this thread asks for `slot` again."""
    slots: dict[str, np.ndarray[Any, Any]] = _local.__dict__.setdefault("slots", {})
    size = math.prod(shape) * dtype.itemsize
    if slot not in slots or slots[slot].size < size:
        slots.pop(slot, None)
        slots[slot] = np.empty(size, np.uint8)
    return slots[slot][:size].view(dtype).reshape(shape)


def return_large_blocks() -> None:
    """Let glibc give every larger block back at once; else each thread's heap keeps what it ever used."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)
