"""What the train step achieved, read from the run's records. Imports nothing heavy."""

from __future__ import annotations

from typing import Any

from engine.run import validation
from engine.run.directory import RunDirectory, read_records
from engine.workers.evaluation import read_last


def training_result(run: RunDirectory, iteration: int) -> dict[str, Any]:
    """What the train step reports, from the records of all its attempts.

    An iteration that was repeated after a crash counts once, as it was last time.
    """
    losses: dict[int, float] = {}
    for record in read_records(run.metrics):
        number = record.get("iteration")
        if record.get("step") == "train" and isinstance(number, int) and number <= iteration and "loss" in record:
            losses[number] = record["loss"]
    result: dict[str, Any] = {"iteration": iteration}
    if losses:
        result |= {"first_loss": losses[min(losses)], "last_loss": losses[max(losses)]}
    known = validation.losses(run, until=iteration)
    if known:
        result["first_validation_loss"] = known[min(known)]
        best = validation.best(known)
        assert best is not None
        result |= {"best_validation_loss": known[best], "best_iteration": best}
    if (last := read_last(run)) and last.iteration == iteration:
        result["validation_loss"] = last.loss
    return result
