"""Read the pickles that torch writes without torch and without running anything they name.

A class of torch or Megatron becomes a record with its attributes and no behaviour; a pickle that
names anything else is refused. So a checkpoint from the internet cannot do harm.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import resource
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError


class Record:
    """Stands for an object of torch: its attributes, or the state it was pickled with."""

    state: Any = None

    def __new__(cls, *arguments: Any) -> Record:
        record = super().__new__(cls)
        record.arguments = arguments
        return record

    def __init__(self, *arguments: Any) -> None:
        self.arguments: tuple[Any, ...]

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


_DTYPES = (
    "bfloat16", "float16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool",
    "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
_STORAGES = {
    "BFloat16Storage": "bfloat16", "HalfStorage": "float16", "FloatStorage": "float32", "DoubleStorage": "float64",
    "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16", "IntStorage": "int32",
    "LongStorage": "int64", "BoolStorage": "bool",
}  # fmt: skip
SPARE_BYTES, BYTES_PER_BYTE = 128 << 20, 200
"""What unpickling may take: a byte of a pickle becomes some tens of bytes of Python objects."""
_one_at_a_time = threading.Lock()
_INERT = ("torch", "megatron", "pathlib")
"""Packages whose classes may be named; none of them is imported."""


def load(data: bytes, origin: str) -> Any:
    """The object in `data`, its torch classes as records. Raises CheckpointError naming `origin`."""
    try:
        with _bounded_memory(SPARE_BYTES + BYTES_PER_BYTE * len(data)):
            return _Unpickler(io.BytesIO(data)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error.message}", error.hint) from error
    except Exception as error:  # noqa: BLE001 damaged bytes make the unpickler raise anything
        raise CheckpointError(f"{origin} is damaged: {error}", "use another checkpoint") from error


@contextlib.contextmanager
def _bounded_memory(more: int) -> Iterator[None]:
    """Let this process grow by no more than `more` bytes: one opcode can ask the unpickler for 32 GB."""
    with _one_at_a_time:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + more
        try:
            if soft == resource.RLIM_INFINITY or limit < soft:
                resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and name in _DTYPES:
            return name
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module.partition(".")[0] in _INERT:
            return type(name, (Record,), {})
        raise CheckpointError(
            f"it names {module}.{name}, which this version does not know", "a newer Megatron wrote it? upgrade gptoss"
        )

    def persistent_load(self, pid: Any) -> Any:
        """A tensor's storage: ("storage", type, record name, device, number of values)."""
        return pid
