"""Which of a run's checkpoints are whole, and which may go, whatever trained them."""

from __future__ import annotations

import shutil

from engine.checkpoints import training
from engine.run import validation
from engine.run.directory import RunDirectory
from engine.settings import Settings


def is_whole(run: RunDirectory, settings: Settings, iteration: int) -> bool:
    """True when nothing of the checkpoint of `iteration` is missing or cut off."""
    checkpoint = training.directory(run.checkpoints, iteration)
    return training.defect(checkpoint, training.needed(settings.launch.route)) is None


def newest_whole(run: RunDirectory, settings: Settings) -> int | None:
    """The iteration that a resume goes on from, or None."""
    return training.newest_whole(run.checkpoints, training.needed(settings.launch.route))


def may_go(run: RunDirectory, settings: Settings, keep: int) -> list[int]:
    """The checkpoints that are not needed beside the `keep` newest whole ones, the oldest first."""
    needed = training.needed(settings.launch.route)
    return training.surplus(run.checkpoints, keep, validation.spared(run, settings), needed)


def rotate(run: RunDirectory, settings: Settings) -> list[int]:
    """Delete what `output.keep_checkpoints` does not keep; return the iterations deleted."""
    deleted = may_go(run, settings, settings.output.keep_checkpoints) if settings.output.keep_checkpoints else []
    for iteration in deleted:
        delete(run, iteration)
    return deleted


def delete(run: RunDirectory, iteration: int) -> None:
    """Remove the checkpoint of `iteration`; what cannot be removed stays."""
    shutil.rmtree(training.directory(run.checkpoints, iteration), ignore_errors=True)
