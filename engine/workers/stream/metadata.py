"""The classes of which `.metadata` is a pickle: torch's own, without the package around them.

`torch.distributed.checkpoint` imports distributed tensors, FSDP and sympy, which takes a processor 2 s:
nearly what torch itself takes, and a third of a conversion of 1 GB. Its metadata.py needs none of that.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_PACKAGE = "torch.distributed.checkpoint"


@dataclass
class _StorageInfo:
    """Stands for torch's class of this name, whose pickle has these three (filesystem.py, `__getstate__`)."""

    relative_path: str
    offset: int
    length: int


_StorageInfo.__module__ = f"{_PACKAGE}.filesystem"


@contextmanager
def classes() -> Iterator[tuple[Any, Any]]:
    """The module with torch's metadata classes, and the class of a place in a file; good for pickling inside.

    What was put into `sys.modules` for that is taken out again: who needs the whole package later gets it.
    """
    if _PACKAGE in sys.modules:
        filesystem = importlib.import_module(f"{_PACKAGE}.filesystem")
        yield importlib.import_module(f"{_PACKAGE}.metadata"), filesystem._StorageInfo
        return
    package, storage = ModuleType(_PACKAGE), ModuleType(_StorageInfo.__module__)
    package.__path__ = [str(Path(torch.__file__).parent / "distributed" / "checkpoint")]
    storage.__dict__["_StorageInfo"] = _StorageInfo
    sys.modules |= {_PACKAGE: package, storage.__name__: storage}
    try:
        yield importlib.import_module(f"{_PACKAGE}.metadata"), _StorageInfo
    finally:
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{_PACKAGE}.")]:
            del sys.modules[name]
