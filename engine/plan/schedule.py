"""The learning rate over the iterations: Megatron's formula, what it refuses, and what a longer run does to it.

core/optimizer_param_scheduler.py of megatron-core 0.19.2. Megatron counts in samples; with one batch size that is
the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.errors import SettingsError
from engine.findings import Finding, error
from engine.settings import Settings, TrainingSettings

WSD_DECAY_SHARE = 10
"""With the schedule WSD the learning rate is constant but for the last tenth, in which it falls."""


def decay_iterations(training: TrainingSettings) -> int:
    """Over how many iterations the learning rate falls; a resume with another number is refused."""
    return training.decay_iterations or training.iterations


def wsd_decay_iterations(training: TrainingSettings) -> int | None:
    """Over how many iterations the learning rate of the schedule WSD falls at its end; None for the others."""
    if training.schedule != "WSD":
        return None
    return max(1, decay_iterations(training) // WSD_DECAY_SHARE)


def check(training: TrainingSettings) -> Iterator[Finding]:
    """What Megatron only asserts when training starts, after the conversion."""
    falling = decay_iterations(training)
    if training.warmup_iterations >= falling:
        what = (
            f"training.warmup_iterations is {training.warmup_iterations}; it must be less than the {falling} iterations"
        )
        why = "the learning rate rises first and falls over the rest"
        yield error("training.warmup", what, why, f"--set training.warmup_iterations={falling // 10}")
    if training.minimum_learning_rate > training.learning_rate:
        low, high = f"{training.minimum_learning_rate:g}", f"{training.learning_rate:g}"
        what = f"training.minimum_learning_rate is {low}, more than training.learning_rate, {high}"
        why = "the learning rate falls from the second to the first"
        yield error("training.minimum", what, why, f"--set training.minimum_learning_rate={_tenth(training)}")


def keep(old: Settings, new: Settings, trained: int | None, trained_under: int | None = None) -> tuple[Settings, str]:
    """`new` with the schedule that a run was trained under, and what that means for the rest of it, in words.

    Args:
        trained: the iteration of the checkpoint that training goes on from; None when it begins anew, and then the
            schedule is that of `new`.
        trained_under: over how many iterations the rate fell in that checkpoint, where it says so.

    Raises SettingsError for another schedule than that, and where nothing more would be learnt.
    """
    before, after = old.training, new.training
    is_same = (before.iterations, before.decay_iterations) == (after.iterations, after.decay_iterations)
    if not trained or is_same:
        return new, ""
    falling = trained_under or decay_iterations(old.training)
    wanted = new.training.decay_iterations
    if wanted and wanted != falling:
        raise SettingsError(
            f"training.decay_iterations is {wanted}, and the run was trained up to iteration {trained} with a "
            f"learning rate that falls over {falling}",
            f"start another run from its checkpoint (model.checkpoint), or --set training.decay_iterations={falling}",
        )
    if decay_iterations(new.training) != falling:
        new = new.with_values({"training.decay_iterations": falling})
    if new.training.iterations <= old.training.iterations:
        return new, ""
    return new, _longer(new.training, falling)


def _longer(training: TrainingSettings, falling: int) -> str:
    """What the learning rate does in a run that was prolonged. Raises SettingsError when that is nothing."""
    last = training.iterations
    if training.schedule == "constant":
        return f"the learning rate stays at {training.learning_rate:g} up to iteration {last}"
    if falling >= last:
        return f"the learning rate goes on falling as it was set, over {falling} iterations"
    if not training.minimum_learning_rate:
        raise SettingsError(
            f"the learning rate reaches 0 at iteration {falling}, so that nothing is learnt from there to {last}",
            f"--set training.minimum_learning_rate={_tenth(training)} trains on at that rate; for another schedule "
            "start another run from its checkpoint: model.checkpoint",
        )
    return (
        f"the learning rate fell over {falling} iterations, as the run began, and stays at "
        f"{training.minimum_learning_rate:g} up to iteration {last}"
    )


def _tenth(training: TrainingSettings) -> str:
    return f"{training.learning_rate / 10:.3g}"
