"""Directories that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of renameat2(2)."""


def partial(final: Path) -> Path:
    """The name under which `final` is made, free of what a killed attempt left there."""
    path = final.with_name(f".{final.name}.partial")
    shutil.rmtree(path, ignore_errors=True)
    return path


def publish(made: Path, final: Path) -> None:
    """Give the finished directory `made` its name, replacing an older one. Raises OSError.

    At every moment `final` is the old one or the new one, whole, where the file system can exchange two names.
    """
    if not final.exists():
        made.rename(final)
        return
    if _exchange(made, final):
        shutil.rmtree(made, ignore_errors=True)
        return
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    final.rename(old)
    made.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two directories swap names in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def size_bytes(directory: Path) -> int:
    """What the files below `directory` hold."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
