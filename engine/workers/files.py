"""Directories that appear whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path


def partial(final: Path) -> Path:
    """The name under which `final` is made, free of what a killed attempt left there."""
    path = final.with_name(f".{final.name}.partial")
    shutil.rmtree(path, ignore_errors=True)
    return path


def publish(made: Path, final: Path) -> None:
    """Give the finished directory `made` its name, replacing an older one. Raises OSError."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    made.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def size_bytes(directory: Path) -> int:
    """What the files below `directory` hold."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
