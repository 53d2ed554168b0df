"""What the training says about itself: metric records, checkpoint events, progress."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from megatron.bridge.training.callbacks import Callback

from engine.run.directory import RunDirectory, read_records
from engine.workers.evaluation import Recorder, read_last
from engine.workers.report import Report

_LOSS = "lm loss"
_GIB = 1 << 30


class Metrics(Callback):
    """Turns Bridge's training events into the run's records."""

    def __init__(self, report: Report, recorder: Recorder) -> None:
        self._report = report
        self._recorder = recorder
        self._began = 0.0
        self._seconds = 0.0
        self._iterations = 0
        self._skipped = 0
        self._nan = 0

    def on_data_init_start(self, context: Any) -> None:
        self._report.phase("opening the data")

    def on_train_start(self, context: Any) -> None:
        self._report.phase(f"training from iteration {context.state.train_state.step}")

    def on_train_step_start(self, context: Any) -> None:
        self._began = time.perf_counter()

    def on_train_step_end(self, context: Any) -> None:
        self._seconds += time.perf_counter() - self._began
        self._iterations += 1
        self._skipped += bool(context.skipped_iter)
        # Bridge counts the iteration after this event.
        iteration = context.state.train_state.step + 1
        training = self._report.settings.training
        last = iteration == training.iterations
        self._report.progress(
            f"iteration {iteration} of {training.iterations}", iteration, training.iterations, "iterations"
        )
        if iteration % training.log_interval and not last:
            return
        if _owns_loss() and context.loss_dict:
            self._write(context, iteration)
        self._seconds, self._iterations = 0.0, 0

    def on_eval_start(self, context: Any) -> None:
        self._report.phase(f"evaluating at iteration {context.state.train_state.step}")
        self._recorder.begin()

    def on_eval_end(self, context: Any) -> None:
        iteration = context.state.train_state.step
        loss = None
        if _owns_loss() and context.total_loss_dict:
            loss = _number(context.total_loss_dict[_LOSS])
            self._report.metric(iteration, validation_loss=_finite(loss))
        self._recorder.end(iteration, loss)

    def on_checkpoint_save(self, context: Any) -> None:
        if self._report.rank:
            return
        iteration = context.state.train_state.step
        # Bridge fires this before it stops the timer of the save.
        seconds = context.state.timers("save-checkpoint").elapsed(reset=False)
        path = f"{self._report.run.checkpoints.name}/iter_{iteration:07d}"
        self._report.event(
            "checkpoint",
            f"checkpoint of iteration {iteration} saved",
            iteration=iteration,
            path=path,
            seconds=seconds,
        )

    def on_train_end(self, context: Any) -> None:
        state = context.state.train_state
        # Bridge evaluates once more at the end; the last iteration may have done so already.
        if self._recorder.iteration == state.step:
            state.do_valid = False

    def _write(self, context: Any, iteration: int) -> None:
        training = self._report.settings.training
        loss = _number(context.loss_dict[_LOSS])
        self._nan += not math.isfinite(loss)
        iteration_s = self._seconds / self._iterations
        tokens_per_s = training.global_batch * training.sequence_length / iteration_s
        self._report.metric(
            iteration,
            loss=_finite(loss),
            grad_norm=None if context.grad_norm is None else _finite(_number(context.grad_norm)),
            learning_rate=float(context.optimizer.param_groups[0]["lr"]),
            tokens_per_s=tokens_per_s,
            tokens_per_s_per_gpu=tokens_per_s / self._report.world_size,
            tflops_per_gpu=self._tflops_per_gpu(context, iteration_s),
            iteration_s=iteration_s,
            consumed_samples=iteration * training.global_batch,
            skipped=self._skipped,
            nan_iterations=self._nan,
            memory_gib=_memory_gib(),
        )

    def _tflops_per_gpu(self, context: Any, iteration_s: float) -> float | None:
        """By Bridge's own count of operations; on a CPU it would compare with nothing."""
        if self._report.plan.device == "cpu":
            return None
        from megatron.bridge.training.utils import flop_utils

        operations = flop_utils.num_floating_point_operations(
            context.state.cfg, batch_size=self._report.settings.training.global_batch
        )
        return float(operations / iteration_s / self._report.world_size / 1e12)


def training_result(run: RunDirectory, iteration: int) -> dict[str, Any]:
    """What the train step reports, from the records of all its attempts.

    An iteration that was repeated after a crash counts once, as it was last time.
    """
    losses: dict[int, float] = {}
    validation: dict[int, float] = {}
    for record in read_records(run.metrics):
        number = record.get("iteration")
        if record.get("step") != "train" or not isinstance(number, int) or number > iteration:
            continue
        if "loss" in record:
            losses[number] = record["loss"]
        if "validation_loss" in record:
            validation[number] = record["validation_loss"]
    result: dict[str, Any] = {"iteration": iteration}
    if losses:
        result |= {"first_loss": losses[min(losses)], "last_loss": losses[max(losses)]}
    if validation:
        result["first_validation_loss"] = validation[min(validation)]
    if (last := read_last(run)) and last.iteration == iteration:
        result["validation_loss"] = last.loss
    return result


def _owns_loss() -> bool:
    """True on exactly one rank: the first of the last pipeline stage."""
    from megatron.core import parallel_state

    return bool(
        parallel_state.is_pipeline_last_stage()
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    )


def _number(value: Any) -> float:
    return float(value.item() if hasattr(value, "item") else value)


def _finite(value: float) -> float | None:
    """JSON has no NaN; the counter tells of it."""
    return value if math.isfinite(value) else None


def _memory_gib() -> float:
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / _GIB)
    resident_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return resident_pages * os.sysconf("SC_PAGE_SIZE") / _GIB
