"""Stopping, crashing and going on: nothing is lost, and the losses are those of an undisturbed run."""

from __future__ import annotations

import json
import shutil
import signal

from engine.plan.layout import Layout
from engine.run.directory import RunDirectory, read_records
from tests.end_to_end.conftest import MakeCase
from tests.end_to_end.harness import Zygote, configure, error_of, losses, outcomes, wait_until

LONG = {"training.iterations": 16, "training.checkpoint_interval": 100, "training.evaluation_interval": 5}
EP2 = Layout(ep=2, dp=2)


def test_stop_saves_and_resume_changes_no_digit(zygote: Zygote, case: MakeCase) -> None:
    undisturbed, stopped = case(LONG, EP2, "undisturbed"), case(LONG, EP2, "stopped")
    expected = zygote.run("train", undisturbed, ranks=2)
    started = zygote.start("train", stopped, ranks=2)
    wait_until(lambda: len(losses(stopped)) >= 3, "three iterations")
    started.signal_all(signal.SIGTERM)
    assert zygote.wait(started) == [0, 0]
    assert outcomes(started.attempt) == ["stopped", "stopped"]
    assert not list(started.attempt.glob("error-*"))
    assert "SystemExit" not in (started.attempt / "rank-0.log").read_text()
    reached = stopped.last_checkpoint()
    assert reached is not None and 3 <= reached < 16
    assert max(losses(stopped)) == reached
    assert zygote.run("train", stopped, ranks=2) == expected
    assert losses(stopped) == losses(undisturbed)
    assert _validation(stopped) == _validation(undisturbed)


def test_a_stop_before_the_training_leaves_a_run_that_can_go_on(zygote: Zygote, case: MakeCase) -> None:
    run = case()
    started = zygote.start("train", run)
    wait_until(lambda: (started.attempt / "rank-0.json").exists(), "the status record")
    started.signal_all(signal.SIGTERM)
    assert zygote.wait(started) == [0]
    assert outcomes(started.attempt) == ["stopped"]
    assert zygote.run("train", run)["iteration"] == 8


def test_a_killed_training_goes_on_from_its_last_checkpoint(
    zygote: Zygote, trained: RunDirectory, case: MakeCase
) -> None:
    run = case()
    started = zygote.start("train", run)
    wait_until(lambda: run.last_checkpoint() == 4 and len(losses(run)) > 4, "an iteration after a checkpoint")
    started.signal_all(signal.SIGKILL)
    assert zygote.wait(started) == [-signal.SIGKILL]
    assert outcomes(started.attempt) == ["running"]
    zygote.run("train", run)
    assert losses(run) == losses(trained)


def test_a_finished_training_reports_again_and_computes_nothing(
    zygote: Zygote, trained: RunDirectory, case: MakeCase
) -> None:
    run = case()
    first = zygote.run("train", run)
    before = run.metrics.read_bytes()
    assert zygote.run("train", run) == first
    assert run.metrics.read_bytes() == before


def test_the_last_evaluation_is_made_up_for(zygote: Zygote, case: MakeCase) -> None:
    """The process died after the last checkpoint and before the evaluation."""
    run = case({"training.evaluation_interval": 100})
    first = zygote.run("train", run)
    shutil.rmtree(run.path / "evaluation")
    again = zygote.run("train", run)
    assert again["iteration"] == 8 and "validation_loss" in again
    assert again["last_loss"] == first["last_loss"]


def test_a_damaged_checkpoint_is_put_aside(zygote: Zygote, trained: RunDirectory, trained_copy: RunDirectory) -> None:
    newest = trained_copy.checkpoints / "iter_0000008"
    data = next(newest.glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-1000])
    result = zygote.run("train", trained_copy)
    assert result["iteration"] == 8
    assert losses(trained_copy) == losses(trained)
    warnings = [event["message"] for event in read_records(trained_copy.events) if event["kind"] == "warning"]
    assert len(warnings) == 1 and "cut off" in warnings[0] and "iteration 8" in warnings[0]
    assert (trained_copy.checkpoints / "damaged-iter_0000008").is_dir()


def test_a_checkpoint_that_was_never_finished_is_put_aside(
    zygote: Zygote, trained: RunDirectory, trained_copy: RunDirectory
) -> None:
    newest = trained_copy.checkpoints / "iter_0000008"
    (newest / ".metadata").unlink()
    (trained_copy.checkpoints / "latest_checkpointed_iteration.txt").write_text("4")
    zygote.run("train", trained_copy)
    assert losses(trained_copy) == losses(trained)
    assert trained_copy.last_checkpoint() == 8


def test_without_a_whole_checkpoint_training_begins_anew(
    zygote: Zygote, trained: RunDirectory, trained_copy: RunDirectory
) -> None:
    for checkpoint in trained_copy.checkpoints.glob("iter_*"):
        (checkpoint / "run_config.yaml").unlink()
    zygote.run("train", trained_copy)
    assert losses(trained_copy) == losses(trained)


def test_another_schedule_is_refused(zygote: Zygote, trained_copy: RunDirectory) -> None:
    configure(trained_copy, {"training.iterations": 12})
    started = zygote.start("train", trained_copy)
    assert zygote.wait(started) == [1]
    error = error_of(started.attempt)
    assert error["error"] == "SettingsError"
    assert "8 iterations; now it would be 12" in error["message"]
    assert "training.decay_iterations=8" in error["hint"]


def test_old_checkpoints_are_removed(zygote: Zygote, case: MakeCase) -> None:
    run = case({"training.checkpoint_interval": 2, "output.keep_checkpoints": 2})
    zygote.run("train", run)
    assert sorted(path.name for path in run.checkpoints.glob("iter_*")) == ["iter_0000006", "iter_0000008"]


def test_a_stopped_preparation_leaves_nothing_that_looks_finished(zygote: Zygote, case: MakeCase) -> None:
    run = case({"data.max_megabytes": 0.0})
    shutil.rmtree(run.data)
    started = zygote.start("prepare", run)
    wait_until(lambda: (run.path / ".data.partial").exists(), "the first file")
    started.signal_all(signal.SIGTERM)
    assert zygote.wait(started) == [0]
    assert json.loads((started.attempt / "rank-0.json").read_text())["outcome"] == "stopped"
    assert not run.data.exists()
    configure(run)
    zygote.run("prepare", run)
    assert not (run.path / ".data.partial").exists()


def _validation(run: RunDirectory) -> dict[int, float]:
    return {r["iteration"]: r["validation_loss"] for r in read_records(run.metrics) if "validation_loss" in r}
