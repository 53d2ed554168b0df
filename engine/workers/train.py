"""The train step: Megatron-Bridge's own training loop, resumable and stoppable."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from typing import Any

from engine.finetune_settings import GOALS
from engine.plan import schedule
from engine.run import validation
from engine.workers import checkpoints, finetune_lora
from engine.workers.evaluation import Recorder, read_last
from engine.workers.report import Report, Stopped, run_worker


def work(report: Report) -> Mapping[str, Any]:
    """Train up to the last iteration, from the newest whole checkpoint if there is one."""
    from engine.workers import model

    model.load_engine(report)
    from engine.workers import training_config
    from engine.workers.metrics import Metrics

    resumed = _resume_point(report)
    if resumed is not None and _has_ended(report, resumed):
        report.phase(f"the training ended before, at iteration {resumed}")
        return _result(report, resumed)
    if resumed is None:
        training_config.check_start(report)
    else:
        checkpoints.check_schedule(report.run, resumed, schedule.decay_iterations(report.settings.training))
    finetune_lora.check_base(report, is_resumed=resumed is not None)
    config = training_config.make(report, model.make_bridge(report, with_weights=False))
    recorder = Recorder(report.run)
    report.phase("building the model")
    metrics = Metrics(report, recorder)
    _train(report, config, recorder, metrics)
    # Bridge lets the ranks wait for each other before it returns: the records are complete.
    return _result(report, metrics.iteration)


def _has_ended(report: Report, iteration: int) -> bool:
    """True when there is nothing to train after the checkpoint of `iteration`, and it was evaluated."""
    last = read_last(report.run)
    is_over = iteration >= report.settings.training.iterations or bool(_early_stop(report, iteration))
    return is_over and last is not None and last.iteration == iteration


def _early_stop(report: Report, iteration: int) -> str:
    """Why the training ends at `iteration` already, or nothing."""
    chosen = report.settings.training
    if iteration >= chosen.iterations:
        return ""
    return validation.exhausted(validation.losses(report.run, until=iteration), chosen.patience)


def _result(report: Report, iteration: int) -> Mapping[str, Any]:
    from engine.workers.results import training_result

    if report.rank:
        return {}
    result = training_result(report.run, iteration)
    if reason := _early_stop(report, iteration):
        result["early_stop"] = reason
        planned = report.settings.training.iterations
        report.event("note", f"training ended at iteration {iteration} of {planned}: {reason}")
    return result


def _train(report: Report, config: Any, recorder: Recorder, metrics: Any) -> None:
    from megatron.bridge.training.finetune import finetune
    from megatron.bridge.training.pretrain import pretrain

    # Bridge's fine-tuning also refuses to begin without weights.
    is_finetuning = report.settings.training.goal in GOALS
    train = finetune if is_finetuning else pretrain
    if is_finetuning:
        _begin_with_evaluation()
    logging.getLogger("megatron.bridge.training.pretrain").addFilter(_is_no_exit)
    try:
        train(config, recorder.forward_step, callbacks=[metrics])
    except SystemExit as exit_:
        if exit_.code:
            raise
        # After a signal Bridge has saved a checkpoint and leaves by sys.exit (train.py:806).
        iteration = report.run.last_checkpoint()
        raise Stopped({"iteration": iteration} if report.rank == 0 else {}) from None


def _begin_with_evaluation() -> None:
    """Have the validation loss measured before the first iteration, too: what the training changed is then known.

    Bridge has no option for it. pretrain.py:150 calls `train`, which is given everything that an evaluation needs.
    """
    loop = importlib.import_module("megatron.bridge.training.pretrain")
    original = loop.train

    def train(step: Any, model: Any, optimizer: Any, scheduler: Any, data: Any, held_out: Any, state: Any, *others: Any,
              **named: Any) -> None:  # fmt: skip
        if not state.train_state.step and state.train_state.do_valid:
            _evaluate(step, model, held_out, state, named["callback_manager"])
        original(step, model, optimizer, scheduler, data, held_out, state, *others, **named)

    loop.train = train  # type: ignore[attr-defined]


def _evaluate(forward_step: Any, model: Any, held_out: Any, state: Any, callback_manager: Any) -> None:
    from megatron.bridge.training.eval import evaluate_and_print_results
    from megatron.bridge.training.train import (
        disable_forward_pre_hook,
        enable_forward_pre_hook,
        should_disable_forward_pre_hook,
    )
    from megatron.core.utils import get_model_config

    config = state.cfg
    # As the loop does around its own evaluations (train.py:668).
    is_hooked = should_disable_forward_pre_hook(
        config.ddp.use_megatron_fsdp,
        config.optimizer.use_distributed_optimizer,
        config.ddp.overlap_param_gather,
    )
    if is_hooked:
        disable_forward_pre_hook(model, param_sync=False)
    evaluate_and_print_results(
        state,
        "iteration 0",
        forward_step,
        held_out,
        model,
        get_model_config(model[0]),
        callback_manager=callback_manager,
    )
    if is_hooked:
        enable_forward_pre_hook(model)


def _is_no_exit(record: logging.LogRecord) -> bool:
    """False for Bridge's "Pretrain failed ... SystemExit: 0", with which it reports an obeyed stop."""
    return not (record.exc_info and record.exc_info[0] is SystemExit)


def _resume_point(report: Report) -> int | None:
    """The iteration of the newest whole checkpoint; damaged newer ones are put aside first."""
    if report.rank == 0:
        iteration, put_aside = checkpoints.repair(report.run, report.settings)
        for sentence in put_aside:
            report.event("warning", sentence)
        return iteration
    return checkpoints.newest_complete(report.run)


if __name__ == "__main__":
    sys.exit(run_worker("train", work, sys.argv[1:]))
