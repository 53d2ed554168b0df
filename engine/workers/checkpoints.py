"""Which training checkpoint a resume starts from."""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.checkpoints import training
from engine.errors import SettingsError
from engine.run import rotation
from engine.run.directory import RunDirectory
from engine.settings import Settings

TRAIN_STATE = "latest_train_state.pt"
"""Bridge resumes from the iteration in this copy of the newest checkpoint's train_state.pt."""


def iteration_directory(run: RunDirectory, iteration: int) -> Path:
    """Where the checkpoint of `iteration` lies."""
    return training.directory(run.checkpoints, iteration)


def newest_complete(run: RunDirectory) -> int | None:
    """Iteration of the newest checkpoint in which nothing is missing, or None."""
    return training.newest_whole(run.checkpoints)


def repair(run: RunDirectory, settings: Settings) -> tuple[int | None, list[str]]:
    """Make the newest whole checkpoint the one that a resume loads.

    Returns its iteration and a sentence for each damaged checkpoint. One rank calls it.
    """
    sentences = rotation.settle(run, settings)
    newest = newest_complete(run)
    if newest is None:
        (run.checkpoints / TRAIN_STATE).unlink(missing_ok=True)
    else:
        shutil.copyfile(iteration_directory(run, newest) / "train_state.pt", run.checkpoints / TRAIN_STATE)
    return newest, sentences


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
