"""Which of a run's checkpoints are whole, and which may go, whatever trained them."""

from __future__ import annotations

import shutil
from pathlib import Path

from engine.checkpoints import torch_dist, training
from engine.paths import write_atomic
from engine.run import validation
from engine.run.directory import RunDirectory
from engine.settings import Settings


def is_whole(run: RunDirectory, settings: Settings, iteration: int) -> bool:
    """True when nothing of the checkpoint of `iteration` is missing or cut off. Raises UnreadableError."""
    checkpoint = training.directory(run.checkpoints, iteration)
    return training.defect(checkpoint, training.needed(settings.launch.route)) is None


def newest_whole(run: RunDirectory, settings: Settings) -> int | None:
    """The iteration that a resume goes on from, or None. Raises UnreadableError."""
    return training.newest_whole(run.checkpoints, training.needed(settings.launch.route))


def may_go(run: RunDirectory, settings: Settings, keep: int) -> list[int]:
    """The checkpoints that are not needed beside the `keep` newest whole ones, the oldest first.

    Raises UnreadableError where that cannot be told.
    """
    needed = training.needed(settings.launch.route)
    return training.surplus(run.checkpoints, keep, validation.spared(run, settings), needed)


def rotate(run: RunDirectory, settings: Settings) -> list[int]:
    """Delete what `output.keep_checkpoints` does not keep; return the iterations deleted. Raises UnreadableError."""
    deleted = may_go(run, settings, settings.output.keep_checkpoints) if settings.output.keep_checkpoints else []
    for iteration in deleted:
        delete(run, iteration)
    return deleted


def is_ours_to_settle(settings: Settings) -> bool:
    """True when no worker does it: Megatron-LM knows nothing of damage. In Slurm an earlier job may be saving yet."""
    return settings.launch.route == "megatron-lm" and settings.launch.launcher != "slurm"


def settle(run: RunDirectory, settings: Settings) -> list[str]:
    """Make the newest whole checkpoint the one that a resume loads; return a sentence for each newer, damaged one.

    Megatron goes on from the iteration in its tracker file, and ends when what is there is damaged. Raises OSError, and
    UnreadableError, with nothing moved, where a checkpoint cannot be judged.
    """
    tracker = run.checkpoints / torch_dist.TRACKER
    sentences: list[str] = []
    for iteration in training.iterations(run.checkpoints):
        checkpoint = training.directory(run.checkpoints, iteration)
        wrong = training.defect(checkpoint, training.needed(settings.launch.route))
        if wrong is None:
            if not tracker.exists() or tracker.read_text(encoding="ascii", errors="replace").strip() != str(iteration):
                write_atomic(tracker, str(iteration))
            return sentences
        sentences.append(f"the checkpoint of iteration {iteration} {_put_aside(checkpoint, wrong)}")
    tracker.unlink(missing_ok=True)
    return sentences


def _put_aside(checkpoint: Path, wrong: str) -> str:
    """Put a damaged checkpoint aside, or delete one whose save was cut short: nothing can be read of it."""
    if not (checkpoint / torch_dist.METADATA).exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
        return "was never finished; it is deleted"
    aside = checkpoint.with_name(training.ASIDE + checkpoint.name)
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    return f"is damaged ({wrong}); it is now {aside.name}"


def delete(run: RunDirectory, iteration: int) -> None:
    """Remove the checkpoint of `iteration`; what cannot be removed stays."""
    shutil.rmtree(training.directory(run.checkpoints, iteration), ignore_errors=True)
