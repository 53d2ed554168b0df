"""Which training checkpoint a resume starts from."""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.checkpoints import training
from engine.checkpoints.torch_dist import METADATA, TRACKER
from engine.errors import SettingsError
from engine.run.directory import RunDirectory

TRAIN_STATE = "latest_train_state.pt"
"""Bridge resumes from the iteration in this copy of the newest checkpoint's train_state.pt."""


def iteration_directory(run: RunDirectory, iteration: int) -> Path:
    """Where the checkpoint of `iteration` lies."""
    return training.directory(run.checkpoints, iteration)


def newest_complete(run: RunDirectory) -> int | None:
    """Iteration of the newest checkpoint in which nothing is missing, or None."""
    return training.newest_whole(run.checkpoints)


def repair(run: RunDirectory) -> tuple[int | None, list[str]]:
    """Make the newest whole checkpoint the one that a resume loads.

    Returns its iteration and a sentence for each damaged checkpoint. One rank calls it.
    """
    sentences: list[str] = []
    for iteration in training.iterations(run.checkpoints):
        directory = iteration_directory(run, iteration)
        wrong = training.defect(directory)
        if wrong is None:
            _point_to(run, directory, iteration)
            return iteration, sentences
        sentences.append(f"the checkpoint of iteration {iteration} {_remove(directory, wrong)}")
    for name in (TRACKER, TRAIN_STATE):
        (run.checkpoints / name).unlink(missing_ok=True)
    return None, sentences


def _remove(directory: Path, wrong: str) -> str:
    """Put a damaged checkpoint aside, or delete one whose save was cut short: nothing can be read of it."""
    if not (directory / METADATA).exists():
        shutil.rmtree(directory, ignore_errors=True)
        return "was never finished; it is deleted"
    aside = directory.with_name(training.ASIDE + directory.name)
    shutil.rmtree(aside, ignore_errors=True)
    directory.rename(aside)
    return f"is damaged ({wrong}); it is now {aside.name}"


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


def _point_to(run: RunDirectory, directory: Path, iteration: int) -> None:
    tracker = run.checkpoints / TRACKER
    if not tracker.exists() or tracker.read_text(encoding="ascii", errors="replace").strip() != str(iteration):
        tracker.write_text(str(iteration), encoding="ascii")
    shutil.copyfile(directory / "train_state.pt", run.checkpoints / TRAIN_STATE)
