"""The checkpoints that a training keeps, `iter_NNNNNNN` in one directory: which are whole, which may go."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from engine.checkpoints import torch_dist
from engine.errors import EngineError, UnreadableError

MEGATRON_LM = (torch_dist.METADATA, torch_dist.BACKEND)
"""Files that every checkpoint in Megatron's distributed format has; they are written last."""
NEEDED = (*MEGATRON_LM, "train_state.pt", "run_config.yaml")
"""And those that Megatron-Bridge adds, without which it cannot go on."""
ASIDE = "damaged-"
"""Begins the name of a damaged checkpoint that was put aside."""

_NAME = re.compile(r"iter_(\d{7,})")


def directory(checkpoints: Path, iteration: int) -> Path:
    """Where the checkpoint of `iteration` lies."""
    return checkpoints / f"iter_{iteration:07d}"


def iterations(checkpoints: Path) -> list[int]:
    """Every iteration of which there is a checkpoint, whole or not, the newest first. Raises UnreadableError."""
    try:
        names = [entry.name for entry in checkpoints.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnreadableError.of(checkpoints, error) from error
    return sorted((int(match[1]) for match in map(_NAME.fullmatch, names) if match), reverse=True)


def needed(route: str) -> tuple[str, ...]:
    """The files that a checkpoint must have that was written on `launch.route`."""
    return NEEDED if route == "bridge" else MEGATRON_LM


def defect(checkpoint: Path, needed: tuple[str, ...] = NEEDED) -> str | None:
    """What is wrong with one checkpoint, or None when nothing is missing or cut off.

    Raises UnreadableError where that cannot be told: it may be whole, and the error may pass.
    """
    try:
        for name in needed:
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
        index = [os.stat(checkpoint / name) for name in MEGATRON_LM]
        identity = [(one.st_ino, one.st_mtime_ns, one.st_size) for one in index]
        problems = torch_dist.file_problems(checkpoint, _file_ends(checkpoint, *identity))
    except UnreadableError:
        raise
    except EngineError as error:
        return error.message
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except OSError as error:
        raise UnreadableError.of(error.filename or checkpoint, error) from error
    return problems[0] if problems else None


@lru_cache(64)
def _file_ends(checkpoint: Path, *identity: tuple[int, ...]) -> Mapping[str, int]:
    """Read once for as long as the index is the same: that of a large model takes seconds, while all ranks wait."""
    return torch_dist.read(checkpoint).file_ends()


def newest_whole(checkpoints: Path, needed: tuple[str, ...] = NEEDED) -> int | None:
    """The newest iteration whose checkpoint is whole, or None. Raises UnreadableError."""
    whole = (one for one in iterations(checkpoints) if defect(directory(checkpoints, one), needed) is None)
    return next(whole, None)


def surplus(checkpoints: Path, keep: int, spare: int | None = None, needed: tuple[str, ...] = NEEDED) -> list[int]:
    """The checkpoints beyond the `keep` newest whole ones, but `spare`, the oldest first.

    Megatron's own rotation counts directories; a newest one that is damaged would cost the last good one.
    Raises UnreadableError.
    """
    whole = 0
    found = []
    for iteration in iterations(checkpoints):
        if whole < keep:
            whole += defect(directory(checkpoints, iteration), needed) is None
        elif iteration != spare:
            found.append(iteration)
    return found[::-1]


def size_bytes(checkpoint: Path) -> int:
    """What the files of one checkpoint hold."""
    return sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
