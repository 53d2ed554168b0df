"""Read the pickles that torch writes without torch and without running anything they name.

A class of torch or Megatron becomes a record with its attributes and no behaviour; a pickle that
names anything else is refused. So a checkpoint from the internet cannot do harm.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
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
_INERT = ("torch", "megatron", "pathlib")
"""Packages whose classes may be named; none of them is imported."""


def load(data: bytes, origin: str) -> Any:
    """The object in `data`, its torch classes as records. Raises CheckpointError naming `origin`."""
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except CheckpointError as error:
        raise CheckpointError(f"{origin}: {error.message}", error.hint) from error
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise CheckpointError(f"{origin} is damaged: {error}", "use another checkpoint") from error


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
