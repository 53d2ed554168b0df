"""The contract between a worker and its supervisor: record, error, log, exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engine.plan.layout import Layout
from engine.plan.plan import Plan
from engine.processes import ProcessId
from engine.run.directory import RunDirectory, create, read_records
from engine.settings import Settings
from engine.settings_file import save
from tests.limits import LIMIT_S

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
DEADLINE_S = LIMIT_S


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = create(tmp_path, "run")
    save(Settings(), run.settings)
    run.plan.write_text(Plan(device="cpu", layout=Layout(), ranks_per_node=1, nodes=1, steps=()).to_json())
    return run


def start(run: RunDirectory, work: str, **environment: str) -> subprocess.Popen[str]:
    chosen = {**os.environ, "FAKE_WORK": work, "GPTOSS_ATTEMPT": str(run.attempt(1, "train")), **environment}
    return subprocess.Popen(
        [sys.executable, str(FAKE_WORKER), str(run.path)],
        env=chosen,
        cwd=run.path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output


def record(run: RunDirectory, rank: int = 0, attempt: int = 1) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run.attempt(attempt, "train") / f"rank-{rank}.json").read_text())
    return value


def error(run: RunDirectory) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run.attempt(1, "train") / "error-rank-0.json").read_text())
    return value


def wait_for_phase(run: RunDirectory) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not any(event["kind"] == "phase" for event in read_records(run.events)):
        assert time.monotonic() < deadline, "the worker does not begin"
        time.sleep(0.01)


def test_a_finished_worker(run: RunDirectory) -> None:
    code, output = finish(start(run, "finish"))
    assert (code, output) == (0, "")
    value = record(run)
    assert value["outcome"] == "finished"
    assert value["rank"] == 0
    assert value["started"] <= value["ended"]
    assert 0 < value["peak_memory_gib"] < 1
    assert value["result"] == {"answer": 42, "cwd": str(run.path), "path": str(run.path.parent / "here")}
    process = ProcessId.from_json(value["process"])
    assert process is not None and not process.is_alive()
    assert not list(run.attempt(1, "train").glob("error-*"))


def test_everything_printed_is_in_the_log(run: RunDirectory) -> None:
    finish(start(run, "finish"))
    log = (run.attempt(1, "train") / "rank-0.log").read_text()
    assert "from python\n" in log and "from a child\n" in log and "doing it" in log


def test_events_and_metrics(run: RunDirectory) -> None:
    finish(start(run, "finish"))
    events = list(read_records(run.events))
    assert events[0]["kind"] == "phase" and events[0]["step"] == "train"
    progress = [event for event in events if event["kind"] == "progress"]
    assert len(progress) < 10, "a fast loop must not flood the file"
    assert (progress[-1]["done"], progress[-1]["total"], progress[-1]["unit"]) == (100, 100, "things")
    (metric,) = read_records(run.metrics)
    assert metric.pop("t") > 1e9
    assert metric == {"step": "train", "iteration": 3, "loss": 1.5}


def test_other_ranks_are_silent(run: RunDirectory) -> None:
    finish(start(run, "finish", RANK="1", WORLD_SIZE="2"))
    assert record(run, rank=1)["outcome"] == "finished"
    assert not run.events.exists()


def test_without_an_attempt_the_worker_makes_one(run: RunDirectory) -> None:
    finish(start(run, "finish", GPTOSS_ATTEMPT=""))
    assert record(run, attempt=0)["outcome"] == "finished"


@pytest.mark.parametrize("by_hand", [{"GPTOSS_ATTEMPT": ""}, {"GPTOSS_BY_HAND": "1"}])
def test_a_worker_started_by_hand_tells_the_terminal(run: RunDirectory, by_hand: dict[str, str]) -> None:
    code, told = finish(start(run, "finish", **by_hand))
    assert code == 0
    assert "train: doing it" in told and "things" in told and "rank 0: finished" in told
    assert "rank-0.log" in told and "from python" not in told, "what libraries print is in the log"
    code, told = finish(start(run, "refuse", **by_hand))
    assert code == 1
    assert "rank 0: PlanError: this cannot be\n" in told and "try that" in told and "rank 0: failed" in told


def test_other_ranks_tell_the_terminal_only_why_they_failed(run: RunDirectory) -> None:
    _, told = finish(start(run, "finish", RANK="1", WORLD_SIZE="2", GPTOSS_BY_HAND="1"))
    assert told == ""
    _, told = finish(start(run, "refuse", RANK="1", WORLD_SIZE="2", GPTOSS_BY_HAND="1"))
    assert "rank 1: PlanError: this cannot be" in told


def test_a_terminal_that_is_gone_ends_no_work(run: RunDirectory) -> None:
    process = start(run, "finish", GPTOSS_BY_HAND="1")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=DEADLINE_S) == 0


def test_a_mistyped_run_directory_is_not_made(tmp_path: Path) -> None:
    code, told = finish(start(RunDirectory(tmp_path / "tpyo"), "finish", GPTOSS_ATTEMPT=""))
    assert code == 4 and "is no run directory" in told
    assert not (tmp_path / "tpyo").exists()


@pytest.mark.parametrize(
    ("work", "kind", "message", "hint"),
    [
        ("fail", "ZeroDivisionError", "one by zero", ""),
        ("refuse", "PlanError", "this cannot be", "try that"),
        ("fill_the_disk", "OSError", "[Errno 28] No space left on device", "free some disk space"),
        ("miss_a_package", "ModuleNotFoundError", "No module named 'no_such_package'", "gptoss doctor"),
        ("leave", "SystemExit", "3", ""),
    ],
)
def test_a_failed_worker(run: RunDirectory, work: str, kind: str, message: str, hint: str) -> None:
    code, _ = finish(start(run, work))
    assert code == 1
    assert record(run)["outcome"] == "failed"
    value = error(run)
    assert (value["error"], value["message"], value["rank"]) == (kind, message, 0)
    assert hint in value["hint"] if hint else value["hint"] == ""
    assert kind in value["traceback"]
    assert kind in (run.attempt(1, "train") / "rank-0.log").read_text()


def test_a_run_directory_that_is_none(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "none")
    run.attempts.mkdir(parents=True)
    code, _ = finish(start(run, "finish"))
    assert code == 1
    assert error(run)["error"] == "NotFoundError"


def test_a_worker_that_stopped_by_itself(run: RunDirectory) -> None:
    code, _ = finish(start(run, "obey"))
    assert code == 0
    assert record(run)["outcome"] == "stopped"
    assert record(run)["result"] == {"iteration": 7}


@pytest.mark.parametrize("work", ["wait_for_a_signal", "break_while_stopping"])
def test_a_signal_stops(run: RunDirectory, work: str) -> None:
    process = start(run, work)
    wait_for_phase(run)
    assert record(run)["outcome"] == "running"
    running = ProcessId.from_json(record(run)["process"])
    assert running is not None and running.is_alive()
    process.send_signal(signal.SIGTERM)
    code, _ = finish(process)
    assert code == 0
    assert record(run)["outcome"] == "stopped"
    assert not list(run.attempt(1, "train").glob("error-*"))


def test_a_killed_worker_leaves_its_record_running(run: RunDirectory) -> None:
    process = start(run, "wait_for_a_signal")
    wait_for_phase(run)
    process.kill()
    finish(process)
    value = record(run)
    assert value["outcome"] == "running"
    process_id = ProcessId.from_json(value["process"])
    assert process_id is not None and not process_id.is_alive()


def test_a_signal_shows_the_stacks(run: RunDirectory) -> None:
    process = start(run, "wait_for_a_signal")
    wait_for_phase(run)
    stacks = run.attempt(1, "train") / "rank-0.stacks"
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + DEADLINE_S
    while "wait_for_a_signal" not in stacks.read_text():
        assert time.monotonic() < deadline, "no stacks in the file"
        time.sleep(0.01)
    process.terminate()
    assert finish(process)[0] == 0


def test_a_rank_that_was_never_asked_leaves_no_stacks(run: RunDirectory) -> None:
    assert finish(start(run, "finish"))[0] == 0
    assert not (run.attempt(1, "train") / "rank-0.stacks").exists()


def test_it_says_how_to_start_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FAKE_WORKER)], env={**os.environ, "FAKE_WORK": "finish"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "python -m engine.workers.train RUN_DIR" in done.stderr
