"""Which training checkpoints are whole, and which one a resume starts from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from engine.errors import SettingsError
from engine.run.directory import RunDirectory

TRACKER = "latest_checkpointed_iteration.txt"
TRAIN_STATE = "latest_train_state.pt"
"""Bridge resumes from the iteration in this copy of the newest checkpoint's train_state.pt."""

_NEEDED = (".metadata", "metadata.json", "train_state.pt", "run_config.yaml")
_NAME = re.compile(r"iter_(\d{7,})")


def iteration_directory(run: RunDirectory, iteration: int) -> Path:
    """Where the checkpoint of `iteration` lies."""
    return run.checkpoints / f"iter_{iteration:07d}"


def newest_complete(run: RunDirectory) -> int | None:
    """Iteration of the newest checkpoint in which nothing is missing, or None."""
    iterations = sorted(_iterations(run), reverse=True)
    return next((i for i in iterations if defect(iteration_directory(run, i)) is None), None)


def defect(checkpoint: Path) -> str | None:
    """What is wrong with this checkpoint, or None when it is whole."""
    for name in _NEEDED:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    try:
        ends = _file_ends(checkpoint)
    except Exception as error:  # noqa: BLE001 unpickling damaged bytes raises anything
        return f".metadata cannot be read ({type(error).__name__})"
    for name, end in ends.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size < end:
            return f"{name} is cut off at {file.stat().st_size:,} of {end:,} bytes"
    return None


def repair(run: RunDirectory) -> tuple[int | None, list[str]]:
    """Make the newest whole checkpoint the one that a resume loads.

    Returns its iteration and a sentence for each damaged checkpoint, which is put aside under
    another name: Bridge counts every iter_* directory when it removes old ones. One rank calls it.
    """
    put_aside: list[str] = []
    for iteration in sorted(_iterations(run), reverse=True):
        directory = iteration_directory(run, iteration)
        wrong = defect(directory)
        if wrong is None:
            _point_to(run, directory, iteration)
            return iteration, put_aside
        aside = directory.with_name(f"damaged-{directory.name}")
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
        put_aside.append(f"the checkpoint of iteration {iteration} is damaged ({wrong}); it is now {aside.name}")
    for name in (TRACKER, TRAIN_STATE):
        (run.checkpoints / name).unlink(missing_ok=True)
    return None, put_aside


def check_schedule(run: RunDirectory, iteration: int, decay_iterations: int) -> None:
    """Refuse a resume under another learning-rate schedule. Raises SettingsError."""
    import yaml

    text = (iteration_directory(run, iteration) / "run_config.yaml").read_text(encoding="utf-8")
    saved = yaml.safe_load(text)["scheduler"]["lr_decay_iters"]
    if saved != decay_iterations:
        raise SettingsError(
            f"the learning rate began to fall over {saved} iterations; now it would be {decay_iterations}",
            f"set training.decay_iterations={saved}",
        )


def _iterations(run: RunDirectory) -> list[int]:
    if not run.checkpoints.is_dir():
        return []
    matches = (_NAME.fullmatch(entry.name) for entry in run.checkpoints.iterdir())
    return [int(match[1]) for match in matches if match]


def _file_ends(checkpoint: Path) -> dict[str, int]:
    """How long each data file must be at least, from the index of torch's distributed checkpoint."""
    from torch.distributed.checkpoint import FileSystemReader

    stored: dict[Any, Any] = FileSystemReader(checkpoint).read_metadata().storage_data
    ends: dict[str, int] = {}
    for place in stored.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
    return ends


def _point_to(run: RunDirectory, directory: Path, iteration: int) -> None:
    tracker = run.checkpoints / TRACKER
    if not tracker.exists() or tracker.read_text(encoding="ascii", errors="replace").strip() != str(iteration):
        tracker.write_text(str(iteration), encoding="ascii")
    shutil.copyfile(directory / "train_state.pt", run.checkpoints / TRAIN_STATE)
