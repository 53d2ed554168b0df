"""The train step: Megatron-Bridge's own training loop, resumable and stoppable."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from engine.finetune_settings import GOALS
from engine.workers import checkpoints, finetune_lora
from engine.workers.evaluation import Recorder, read_last
from engine.workers.report import Report, Stopped, run_worker


def work(report: Report) -> Mapping[str, Any]:
    """Train up to the last iteration, from the newest whole checkpoint if there is one."""
    from engine.workers import model

    model.load_engine(report)
    from engine.workers import training_config
    from engine.workers.metrics import Metrics, training_result

    iterations = report.settings.training.iterations
    resumed = _resume_point(report)
    last = read_last(report.run)
    if resumed is not None and resumed >= iterations and last and last.iteration == resumed:
        report.phase(f"iteration {resumed} was reached before")
        return training_result(report.run, resumed) if report.rank == 0 else {}
    if resumed is None:
        training_config.check_start(report)
    else:
        checkpoints.check_schedule(report.run, resumed, training_config.decay_iterations(report.settings))
    finetune_lora.check_base(report, is_resumed=resumed is not None)
    config = training_config.make(report, model.make_bridge(report, with_weights=False))
    recorder = Recorder(report.run)
    report.phase("building the model")
    _train(report, config, recorder, Metrics(report, recorder))
    # Bridge lets the ranks wait for each other before it returns: the records are complete.
    return training_result(report.run, iterations) if report.rank == 0 else {}


def _train(report: Report, config: Any, recorder: Recorder, metrics: Any) -> None:
    from megatron.bridge.training.finetune import finetune
    from megatron.bridge.training.pretrain import pretrain

    # Bridge's fine-tuning also refuses to begin without weights.
    train = finetune if report.settings.training.goal in GOALS else pretrain
    logging.getLogger("megatron.bridge.training.pretrain").addFilter(_is_no_exit)
    try:
        train(config, recorder.forward_step, callbacks=[metrics])
    except SystemExit as exit_:
        if exit_.code:
            raise
        # After a signal Bridge has saved a checkpoint and leaves by sys.exit (train.py:806).
        iteration = report.run.last_checkpoint()
        raise Stopped({"iteration": iteration} if report.rank == 0 else {}) from None


def _is_no_exit(record: logging.LogRecord) -> bool:
    """False for Bridge's "Pretrain failed ... SystemExit: 0", with which it reports an obeyed stop."""
    return not (record.exc_info and record.exc_info[0] is SystemExit)


def _resume_point(report: Report) -> int | None:
    """The iteration of the newest whole checkpoint; damaged newer ones are put aside first."""
    if report.rank == 0:
        iteration, put_aside = checkpoints.repair(report.run)
        for sentence in put_aside:
            report.event("warning", sentence)
        return iteration
    return checkpoints.newest_complete(report.run)


if __name__ == "__main__":
    sys.exit(run_worker("train", work, sys.argv[1:]))
