"""The checkpoints that a training keeps, `iter_NNNNNNN` in one directory: which are whole, which may go."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from engine.checkpoints import torch_dist
from engine.errors import EngineError

NEEDED = (torch_dist.METADATA, torch_dist.BACKEND, "train_state.pt", "run_config.yaml")
ASIDE = "damaged-"
"""Begins the name of a damaged checkpoint that was put aside."""

_NAME = re.compile(r"iter_(\d{7,})")


def directory(checkpoints: Path, iteration: int) -> Path:
    """Where the checkpoint of `iteration` lies."""
    return checkpoints / f"iter_{iteration:07d}"


def iterations(checkpoints: Path) -> list[int]:
    """Every iteration of which there is a checkpoint, whole or not, the newest first."""
    try:
        names = [entry.name for entry in checkpoints.iterdir()]
    except OSError:
        return []
    return sorted((int(match[1]) for match in map(_NAME.fullmatch, names) if match), reverse=True)


def defect(checkpoint: Path) -> str | None:
    """What is wrong with one checkpoint, or None when nothing is missing or cut off."""
    for name in NEEDED:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    try:
        problems = torch_dist.read(checkpoint).file_problems()
    except EngineError as error:
        return error.message
    return problems[0] if problems else None


def newest_whole(checkpoints: Path) -> int | None:
    """The newest iteration whose checkpoint is whole, or None."""
    return next((one for one in iterations(checkpoints) if defect(directory(checkpoints, one)) is None), None)


def rotate(checkpoints: Path, keep: int, spare: int | None = None) -> list[int]:
    """Delete the oldest checkpoints beyond the `keep` newest whole ones, but `spare`; return the iterations deleted.

    Megatron's own rotation counts directories; a newest one that is damaged would cost the last good one.
    """
    whole = 0
    deleted = []
    for iteration in iterations(checkpoints):
        if whole >= keep:
            if iteration == spare:
                continue
            shutil.rmtree(directory(checkpoints, iteration), ignore_errors=True)
            deleted.append(iteration)
        elif defect(directory(checkpoints, iteration)) is None:
            whole += 1
    return deleted


def size_bytes(checkpoint: Path) -> int:
    """What the files of one checkpoint hold."""
    return sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
