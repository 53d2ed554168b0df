"""The supervisor against a scripted child (FakePython), with real processes and signals."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine import settings_file
from engine.errors import LaunchError, RunError, UnreadableError
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.processes import ProcessId
from engine.run import directory, job, start
from engine.run.directory import RunDirectory, read_records
from engine.run.reports import Outcome, Verdict
from engine.run.state import Status
from engine.run.supervisor import Supervisor
from engine.settings import Settings
from tests.limits import LIMIT_S

FAKE_PYTHON = Path(__file__).parent.parent / "fakes" / "fake_python.py"
STEPS = ("prepare", "train")


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Create a run whose steps act as scripted; every process of it is ended afterwards."""
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))
    made: list[RunDirectory] = []

    def make(script: dict[str, list[str]], name: str = "", **values: object) -> RunDirectory:
        settings = Settings().with_values(
            {"model.name": "tiny", "launch.python": str(FAKE_PYTHON), "launch.restarts": 1}
            | {"launch.restart_wait_s": 0}
            | values
        )
        steps = tuple(PlannedStep(name=step, ranks_per_node=1, why="test") for step in STEPS)
        plan = Plan(device="cpu", layout=Layout(), ranks_per_node=1, nodes=1, steps=steps)
        run = start.create(settings, plan, name)
        (run.path / "script.json").write_text(json.dumps(script))
        made.append(run)
        return run

    yield make
    for run in made:
        try:
            supervisor = run.read_state().supervisor
        except RunError:
            continue  # the test wrote that state; nothing runs
        if supervisor:
            supervisor.send(signal.SIGQUIT)
            _until(lambda supervisor=supervisor: not supervisor.is_alive())


def _until(claim, limit_s: float = LIMIT_S):
    deadline = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def _is_training(run: RunDirectory) -> bool:
    return any(record.get("iteration") == 5 for record in read_records(run.metrics))


def _kinds(run: RunDirectory) -> list[str]:
    return [record["kind"] for record in read_records(run.events)]


def test_what_the_prepare_step_sets_holds_for_the_training(make_run, monkeypatch):
    """`finetune.epochs` becomes iterations once the rows are counted."""
    run = make_run({}, **{"training.iterations": 100})
    supervisor = Supervisor(run)

    def carry_out(step):
        counted = supervisor.settings.with_values({"training.iterations": 7})
        settings_file.save(counted, run.settings)
        return Verdict(outcome=Outcome.FINISHED)

    monkeypatch.setattr(supervisor, "_carry_out_step", carry_out)
    guard = supervisor.health.space
    assert supervisor.carry_out() is Status.FINISHED
    supervisor._update(supervisor=None)  # it is this very process, which `make_run` must not end
    assert supervisor.settings.training.iterations == 7
    assert supervisor.health.space is not guard


@pytest.mark.parametrize(("failures", "outcome"), [(1, Outcome.FINISHED), (2, Outcome.FAILED)])
def test_what_cannot_be_read_is_tried_again_as_often_as_anything_else(make_run, monkeypatch, failures, outcome):
    run = make_run({})
    supervisor = Supervisor(run)
    unreadable = UnreadableError.of("/share/.metadata", OSError(errno.EIO, os.strerror(errno.EIO)))
    attempts = [unreadable] * failures
    ended: list[bool] = []

    def attempt(step):
        if attempts:
            raise attempts.pop()
        return Verdict(outcome=Outcome.FINISHED)

    monkeypatch.setattr(supervisor, "_attempt", attempt)
    monkeypatch.setattr(supervisor, "end_processes", lambda: ended.append(True))
    verdict = supervisor._carry_out_step(supervisor.plan.steps[1])
    assert verdict.outcome is outcome
    assert len(ended) == failures and _kinds(run) == ["restart"]
    assert "/share/.metadata" in next(iter(read_records(run.events)))["message"]
    if outcome is Outcome.FAILED:
        assert "/share/.metadata" in verdict.message and verdict.hint


def test_all_steps_finish_in_order(make_run):
    run = make_run({})
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FINISHED
    assert [step.status for step in state.steps] == [Status.FINISHED, Status.FINISHED]
    assert state.results["train"]["answer"] == "train"
    assert [path.name for path in sorted(run.attempts.iterdir())] == ["01-prepare", "02-train"]
    assert _kinds(run) == ["step-started", "step-finished", "step-started", "step-finished", "finished"]


def test_the_command_reads_the_env_file(make_run):
    run = make_run({})
    start.launch(run)
    start.wait(run, LIMIT_S)
    environment = run.environment.read_text()
    assert [line.partition("=")[0] for line in environment.splitlines()] == [
        "GPUS_PER_NODE",
        "NUM_NODES",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NODE_RANK",
    ]
    script = (run.attempt(2, "train") / "command.sh").read_text()
    assert 'source "$RUN_DIR"/distributed_config.env' in script
    assert '"$MASTER_PORT"' in script


def test_a_graceful_stop_is_not_a_failure_and_resuming_finishes(make_run):
    run = make_run({"train": ["hang", "finish"]})
    start.launch(run)
    _until(lambda: _is_training(run))
    start.stop(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.STOPPED
    assert state.find_step("train").status is Status.STOPPED
    start.resume(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FINISHED
    assert sorted(path.name for path in run.attempts.iterdir()) == ["01-prepare", "02-train", "03-train"]


def test_a_rank_that_ignores_the_stop_is_ended_after_the_grace(make_run):
    run = make_run({"train": ["ignore-sigterm"]}, **{"launch.grace_s": 1})
    start.launch(run)
    _until(lambda: (run.attempt(2, "train") / "rank-0.json").exists())
    rank = ProcessId.from_json(json.loads((run.attempt(2, "train") / "rank-0.json").read_text())["process"])
    start.stop(run)
    assert start.wait(run, LIMIT_S).status is Status.STOPPED
    assert rank is not None and not rank.is_alive()


def test_kill_ends_everything_at_once(make_run):
    run = make_run({"train": ["ignore-sigterm"]}, **{"launch.grace_s": 1000})
    start.launch(run)
    _until(lambda: (run.attempt(2, "train") / "rank-0.json").exists())
    start.kill(run)
    assert start.wait(run, LIMIT_S).status is Status.STOPPED


def test_a_killed_rank_is_restarted_once_and_half_a_line_is_survived(make_run):
    run = make_run({"train": ["die", "finish"]})
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FINISHED
    assert "restart" in _kinds(run)


def test_restarts_are_capped(make_run):
    run = make_run({"train": ["die"]})
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FAILED
    assert "killed from outside or out of memory" in state.message
    assert _kinds(run).count("restart") == 1


@pytest.mark.parametrize(
    ("error", "text"),
    [("ValueError", "ValueError"), ("OutOfMemoryError", "GPU"), ("SettingsError", "SettingsError")],
)
def test_an_error_that_would_come_again_is_not_retried(make_run, error, text):
    run = make_run({"train": [f"raise-{error}", "finish"]})
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FAILED
    assert text in state.message
    assert "restart" not in _kinds(run)


def test_success_is_what_the_ranks_report_not_what_the_launcher_returns(make_run):
    run = make_run({"train": ["exit-without-report"]}, **{"launch.restarts": 0})
    start.launch(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FAILED
    assert "no rank started (return code 3)" in state.message


def test_no_process_survives_its_step(make_run):
    run = make_run({"prepare": ["leave-a-child"]})
    start.launch(run)
    assert start.wait(run, LIMIT_S).status is Status.FINISHED
    child = int((run.path / "child.pid").read_text())
    assert ProcessId.of(child) is None


def test_a_killed_supervisor_leaves_a_lost_run_that_can_be_resumed(make_run):
    run = make_run({"train": ["hang", "finish"]})
    start.launch(run)
    _until(lambda: _is_training(run))
    supervisor = run.read_state().supervisor
    rank = ProcessId.from_json(json.loads((run.attempt(2, "train") / "rank-0.json").read_text())["process"])
    supervisor.send(signal.SIGKILL)
    _until(lambda: not supervisor.is_alive())
    assert run.read_state().status is Status.RUNNING
    assert run.read_state().observed().status is Status.LOST
    _until(lambda: not rank.is_alive())  # the job is told to save and leave when its supervisor dies
    start.resume(run)
    assert start.wait(run, LIMIT_S).status is Status.FINISHED


def test_one_run_has_one_supervisor(make_run):
    run = make_run({"train": ["hang"]})
    start.launch(run)
    _until(lambda: _is_training(run))
    with pytest.raises(LaunchError, match="has a supervisor already"):
        start.launch(run)
    with pytest.raises(RunError, match="is running"):
        start.resume(run)


def test_the_run_outlives_the_process_that_started_it(make_run):
    run = make_run({"train": ["hang", "finish"]})
    code = "import sys, time; from engine.run import start; start.launch(start.find(sys.argv[1])); time.sleep(60)"
    starter = subprocess.Popen([sys.executable, "-c", code, str(run.path)], env=dict(os.environ))
    _until(lambda: _is_training(run))
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert run.read_state().observed().status is Status.RUNNING
    start.stop(run)
    assert start.wait(run, LIMIT_S).status is Status.STOPPED


def test_a_damaged_state_is_rebuilt_from_the_attempts(make_run):
    run = make_run({"train": ["raise-ValueError", "finish"]})
    start.launch(run)
    start.wait(run, LIMIT_S)
    run.state.write_text('{"version": 1, "na')
    with pytest.raises(RunError, match="damaged"):
        run.read_state()
    start.resume(run)
    state = start.wait(run, LIMIT_S)
    assert state.status is Status.FINISHED
    assert sorted(path.name for path in run.attempts.iterdir()) == ["01-prepare", "02-train", "03-train"]


def test_a_supervisor_is_found_by_its_command_line_behind_a_link(make_run, tmp_path, monkeypatch):
    """Where its record cannot be read nothing else finds it; its ranks, ended alone, would be started again."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "link"))
    run = make_run({"train": ["hang", "hang"]}, name="mine")
    start.launch(run)
    _until(lambda: _is_training(run))
    found = directory.find(tmp_path / "link", "mine")
    assert job.supervisor_of(found.path) == run.read_state().supervisor
    assert job.processes_of(found.path)


def test_a_newer_run_is_refused_politely(make_run):
    run = make_run({})
    run.state.write_text('{"version": 999}')
    with pytest.raises(RunError, match="newer gptoss"):
        start.resume(run)


def test_an_existing_name_and_a_bad_name_are_refused(make_run):
    make_run({}, name="mine")
    with pytest.raises(RunError, match="exists already"):
        make_run({}, name="mine")
    with pytest.raises(RunError, match="cannot name a run"):
        make_run({}, name="../evil")


def test_a_finished_run_is_prolonged_only_by_more_iterations(make_run):
    run = make_run({})
    start.launch(run)
    start.wait(run, LIMIT_S)
    with pytest.raises(RunError, match="has finished"):
        start.resume(run)
    with pytest.raises(RunError, match="cannot change within a run"):
        start.resume(run, {"model.name": "gpt-oss-20b"})
    start.resume(run, {"training.iterations": 200})
    assert start.wait(run, LIMIT_S).status is Status.FINISHED
    assert "iterations = 200" in run.settings.read_text()
    assert "decay_iterations = 0" in run.settings.read_text()  # nothing was trained under a schedule


def test_a_run_elsewhere_is_found_by_its_name(make_run, tmp_path):
    run = make_run({}, name="far", **{"output.directory": str(tmp_path / "scratch")})
    assert run.path == tmp_path / "scratch" / "far"
    assert start.find("far").path == run.path


def test_a_taken_port_is_replaced_and_said(make_run):
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = make_run({}, **{"launch.master_port": port})
        start.launch(run)
        assert start.wait(run, LIMIT_S).status is Status.FINISHED
    notes = [record["message"] for record in read_records(run.events) if record["kind"] == "note"]
    assert notes and f"port {port} is in use" in notes[0]
    assert f"MASTER_PORT={port}\n" not in run.environment.read_text()
