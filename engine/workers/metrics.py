"""What the training says about itself: metric records, checkpoint events, progress."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from megatron.bridge.training.callbacks import Callback

from engine.errors import EngineError
from engine.run import rotation, validation
from engine.workers.evaluation import Recorder
from engine.workers.experts import Balance, ExpertCounts
from engine.workers.report import Report
from engine.workers.trackers import Trackio, open_tracker, tell_bridge

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
        self._validation: dict[int, float] = {}
        """The losses of the evaluations so far, those before a resume included."""
        self._lowest_saved = math.inf
        """The lowest validation loss of a checkpoint."""
        self._tracker: Trackio | None = None
        self._experts: ExpertCounts | None = None
        self.iteration = 0
        """The last one, once the training has ended."""

    def on_data_init_start(self, context: Any) -> None:
        self._report.phase("opening the data")

    def on_train_start(self, context: Any) -> None:
        step = context.state.train_state.step
        if step:
            self._validation = validation.losses(self._report.run, until=step)
            best = validation.best_saved(self._report.run)
            self._lowest_saved = self._validation.get(best, math.inf) if best else math.inf
        else:
            self._recorder.begin_first()
        self._experts = ExpertCounts(context.model)
        if _owns_loss():
            self._tracker = open_tracker(self._report.settings, self._report.run)
        self._report.phase(f"training from iteration {step}")

    def on_train_step_start(self, context: Any) -> None:
        self._began = time.perf_counter()

    def on_train_step_end(self, context: Any) -> None:
        self._seconds += time.perf_counter() - self._began
        self._iterations += 1
        self._skipped += bool(context.skipped_iter)
        # Bridge counts the iteration after this event.
        iteration = context.state.train_state.step + 1
        self._recorder.end_first(_number(context.loss_dict[_LOSS]) if _owns_loss() and context.loss_dict else None)
        chosen = self._report.settings.training
        last = iteration == chosen.iterations
        self._report.progress(
            f"iteration {iteration} of {chosen.iterations}", iteration, chosen.iterations, "iterations"
        )
        if iteration % chosen.log_interval and not last:
            return
        balance = self._experts.take() if self._experts is not None else None  # every rank takes part
        if balance is not None:
            told = {"load_balance": balance.most, "load_balance_least": balance.least}
            tell_bridge(context.state, iteration, told)
        if _owns_loss() and context.loss_dict:
            self._write(context, iteration, balance)
        self._seconds, self._iterations = 0.0, 0

    def on_eval_start(self, context: Any) -> None:
        self._report.phase(f"evaluating at iteration {context.state.train_state.step}")
        self._recorder.begin()

    def on_eval_end(self, context: Any) -> None:
        iteration = context.state.train_state.step
        loss = None
        if _owns_loss() and context.total_loss_dict:
            loss = _number(context.total_loss_dict[_LOSS])
            self._record(iteration, validation_loss=_finite(loss))
        loss = self._recorder.end(iteration, loss, is_best=loss is not None and self._is_best(iteration, loss))
        if math.isfinite(loss):
            if self._is_best(iteration, loss):
                self._lowest_saved = loss
            self._validation[iteration] = loss
            self._end_early(context)

    def _is_best(self, iteration: int, loss: float) -> bool:
        """True when the best checkpoint is wanted, this iteration is saved, and no one before it had so low a loss."""
        if self._report.settings.output.export_checkpoint != validation.BEST:
            return False
        chosen = self._report.settings.training
        is_last = iteration >= chosen.iterations or bool(
            validation.exhausted({**self._validation, iteration: loss}, chosen.patience)
        )
        is_saved = iteration > 0 and (is_last or iteration % chosen.checkpoint_interval == 0)
        return is_saved and loss < self._lowest_saved

    def _end_early(self, context: Any) -> None:
        """Make this iteration the last one when patience is at an end; every rank decides the same."""
        state, chosen = context.state, self._report.settings.training
        if validation.exhausted(self._validation, chosen.patience):
            # Bridge has no early stop; its loop asks this number before each iteration (train.py:377), and saves.
            state.cfg.train.train_iters = min(state.train_state.step, chosen.iterations)

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
        try:
            rotation.rotate(self._report.run, self._report.settings)
        except (OSError, EngineError) as error:  # the training needs no room yet
            self._report.event("warning", f"no older checkpoint was removed: {error}")

    def on_train_end(self, context: Any) -> None:
        state = context.state.train_state
        self.iteration = state.step
        # Bridge evaluates once more at the end; the last iteration may have done so already.
        if self._recorder.iteration == state.step:
            state.do_valid = False

    def _write(self, context: Any, iteration: int, balance: Balance | None) -> None:
        chosen = self._report.settings.training
        loss = _number(context.loss_dict[_LOSS])
        self._nan += not math.isfinite(loss)
        iteration_s = self._seconds / self._iterations
        tokens_per_s = chosen.global_batch * chosen.sequence_length / iteration_s
        self._record(
            iteration,
            loss=_finite(loss),
            grad_norm=None if context.grad_norm is None else _finite(_number(context.grad_norm)),
            learning_rate=float(context.optimizer.param_groups[0]["lr"]),
            tokens_per_s=tokens_per_s,
            tokens_per_s_per_gpu=tokens_per_s / self._report.world_size,
            tflops_per_gpu=self._tflops_per_gpu(context, iteration_s),
            iteration_s=iteration_s,
            consumed_samples=iteration * chosen.global_batch,
            skipped=self._skipped,
            nan_iterations=self._nan,
            memory_gib=_memory_gib(),
            load_balance=balance.most if balance else None,
            load_balance_least=balance.least if balance else None,
        )

    def _record(self, iteration: int, **values: float | None) -> None:
        self._report.metric(iteration, **values)
        if self._tracker is not None:
            self._tracker.log(iteration, values)

    def _tflops_per_gpu(self, context: Any, iteration_s: float) -> float | None:
        """By Bridge's own count of operations; on a CPU it would compare with nothing."""
        if self._report.plan.device == "cpu":
            return None
        from megatron.bridge.training.utils import flop_utils

        operations = flop_utils.num_floating_point_operations(
            context.state.cfg, batch_size=self._report.settings.training.global_batch
        )
        return float(operations / iteration_s / self._report.world_size / 1e12)


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
