"""The validation losses of a run: which checkpoint learnt best, and when there is nothing left to learn.

They are read from the run's own records, so a resumed training knows what the one before it knew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engine.checkpoints import training
from engine.run.directory import RunDirectory, read_records, records
from engine.settings import Settings

BEST = "best"
"""The value of `output.export_checkpoint` that keeps and exports the best checkpoint instead of the last one."""


def losses(
    run: RunDirectory, until: int | None = None, read: Callable[..., Iterator[dict[str, Any]]] = read_records
) -> dict[int, float]:
    """Validation loss by iteration, up to `until`; an iteration that was repeated counts as it was last time."""
    found: dict[int, float] = {}
    # Asked every second as a save comes near, of a file that a long training fills with all its iterations.
    for record in read(run.metrics, holding=b'"validation_loss"'):
        iteration, loss = record.get("iteration"), record.get("validation_loss")
        if record.get("step") != "train" or type(iteration) is not int or not isinstance(loss, (int, float)):
            continue
        if math.isfinite(loss) and (until is None or iteration <= until):
            found[iteration] = float(loss)
    return found


def best(known: Mapping[int, float]) -> int | None:
    """The iteration with the lowest loss, the first of several; None when there is none."""
    return min(known, key=lambda iteration: (known[iteration], iteration), default=None)


def best_saved(run: RunDirectory, needed: tuple[str, ...] = training.NEEDED) -> int | None:
    """The iteration with the lowest validation loss of which there is a whole checkpoint, or None.

    Raises UnreadableError: without the losses the best one would be taken for any other, and deleted.
    """
    known = losses(run, read=records)
    saved = [one for one in training.iterations(run.checkpoints) if one in known]
    ranked = sorted(saved, key=lambda iteration: (known[iteration], iteration))
    whole = (one for one in ranked if training.defect(training.directory(run.checkpoints, one), needed) is None)
    return next(whole, None)


def spared(run: RunDirectory, settings: Settings) -> int | None:
    """The iteration whose checkpoint must outlive the rotation, or None."""
    if settings.output.export_checkpoint != BEST:
        return None
    return best_saved(run, training.needed(settings.launch.route))


def to_export(run: RunDirectory, settings: Settings) -> int | None:
    """The iteration that is exported: the best or the newest whole checkpoint; None when there is none."""
    chosen = spared(run, settings)
    return training.newest_whole(run.checkpoints) if chosen is None else chosen


def exhausted(known: Mapping[int, float], patience: int) -> str:
    """Why the training ends before its last iteration, or nothing. Without patience it never does."""
    at = best(known)
    if not patience or at is None:
        return ""
    since = sum(iteration > at for iteration in known)
    if since < patience:
        return ""
    times = "evaluation" if since == 1 else f"{since} evaluations"
    return f"no lower validation loss in the last {times}: {known[at]:.4f} at iteration {at} is the best"
