"""What `torch.save` writes around a tensor's values: the part before them and the part after.

A chunk of a checkpoint is head + values + tail. The frame depends on shape and type alone, so it
is made once by torch itself and the values never pass through it.
"""

from __future__ import annotations

import io
import threading
from functools import cache
from typing import Any

import torch
from torch.utils.serialization import config

_OPTION = threading.Lock()


@cache
def frame(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[bytes, bytes]:
    """Head and tail of the archive of a contiguous tensor."""
    values = torch.empty(shape, dtype=dtype)
    start, archive = _archive(values)
    end = start + values.numel() * values.element_size()
    return archive[:start], archive[end:]


def saved(thing: Any) -> bytes:
    """What `torch.save` writes for something that is no tensor."""
    stream = io.BytesIO()
    torch.save(thing, stream)
    return stream.getvalue()


def _archive(values: torch.Tensor) -> tuple[int, bytes]:
    stream = io.BytesIO()
    # The values come later, so no sum over them can be known; torch does not look at it.
    # The option is one for the whole process, and threads come here.
    with _OPTION, config.patch("save.compute_crc32", False):
        torch.save(values, stream)
    stream.seek(0)
    reader = torch._C.PyTorchFileReader(stream)
    return int(reader.get_record_offset("data/0")), stream.getvalue()
