"""A signal to any process of a run, at any moment: the run ends as if nothing had been."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from engine.plan.plan import STEP_NAMES
from engine.processes import ProcessId
from engine.run import start
from engine.run.directory import RunDirectory
from engine.run.job import processes_of
from engine.run.state import Status
from tests.faults import harness
from tests.faults.catalogue import SIGNALS, Signal
from tests.faults.conftest import MakeRun
from tests.faults.harness import until

MOMENTS = ("prepare", "convert", "train", "save", "export", "verify")
HANG_S = 3
"""Longer than the double takes to start on a busy machine, and no longer than a test wants to wait."""


WORST = ("watcher-kill", "supervisor-kill", "supervisor-term", "torchrun-kill", "torchrun-term", "rank-kill",
         "rank-term", "rank-stop")  # fmt: skip
"""What is tried at every change; all others with `make faults`."""


def _cases(moments: tuple[str, ...], keys: tuple[str, ...] = ()) -> list[object]:
    return [
        pytest.param(fault, moment, id=f"{fault.key}-{moment}", marks=pytest.mark.fault(fault.key))
        for fault in SIGNALS
        for moment in moments
        if not keys or fault.key in keys
    ]


@pytest.mark.parametrize(("fault", "moment"), _cases(("save",), WORST))
def test_a_signal_during_a_save(fault: Signal, moment: str, make_run: MakeRun, calm: RunDirectory) -> None:
    _check(fault, moment, make_run("run", ("train",), **_hang(fault)), calm)


@pytest.mark.faults
@pytest.mark.parametrize(("fault", "moment"), _cases(MOMENTS))
def test_a_signal_at_any_moment(fault: Signal, moment: str, make_run: MakeRun, calm: RunDirectory) -> None:
    _check(fault, moment, make_run("run", STEP_NAMES, **_hang(fault)), calm)


def _hang(fault: Signal) -> dict[str, object]:
    return {"launch.hang_s": HANG_S if fault.number is signal.SIGSTOP else 0}


def _check(fault: Signal, moment: str, run: RunDirectory, calm: RunDirectory) -> None:
    start.launch(run)
    watcher = harness.start_watcher(run) if fault.process == "watcher" else None
    try:
        until(lambda: _is_at(run, moment), f"the moment {moment}")
        attempt = run.read_state().attempt
        target = _target(run, fault.process, watcher)
        assert target is not None and target.send(fault.number)
        _recover(run, fault, attempt)
        assert harness.finish(run).status is Status.FINISHED, run.read_state().message
    finally:
        if watcher:
            watcher.kill()
            watcher.wait()
    harness.check_whole(run, calm if run.export.exists() else _training_of(calm))
    # A worker without torchrun inherits the supervisor's deafness to SIGHUP: nothing happens that could be told.
    is_deaf = moment == "prepare" and fault.number is signal.SIGHUP
    if fault.seen and not is_deaf:
        told = [record["message"] for record in harness.read_records(run.events)]
        assert any(fault.seen in message for message in told), told
    if fault.key == "rank-stop" and moment in ("train", "save"):
        stacks = run.attempt(attempt, "train") / "rank-0.stacks"
        assert "fake_training.py" in stacks.read_text()


def _training_of(calm: RunDirectory) -> RunDirectory:
    """The undisturbed run as one that only trains: nothing but its losses is compared."""
    only = RunDirectory(calm.path)
    only.export = calm.path / "not-compared"
    return only


def _is_at(run: RunDirectory, moment: str) -> bool:
    state = run.read_state()
    if moment == "save":
        return state.step == "train" and harness.is_saving(run) and bool(harness.ranks_of(run))
    if moment == "train":
        return max(harness.losses(run), default=0) > harness.INTERVAL
    return harness.at_work(run, moment)


def _target(run: RunDirectory, process: str, watcher: subprocess.Popen[bytes] | None) -> ProcessId | None:
    if process == "watcher":
        assert watcher is not None
        return ProcessId.of(watcher.pid)
    if process == "supervisor":
        return harness.supervisor_of(run)
    if process == "torchrun":
        return harness.launcher_of(run)
    ranks = harness.ranks_of(run)
    return ranks[-1] if ranks else None


def _recover(run: RunDirectory, fault: Signal, attempt: int) -> None:
    """Check the state that was promised right after the fault, before anybody resumes."""
    if fault.key == "supervisor-kill":
        assert start.wait(run, harness.LIMIT_S).status is Status.LOST
        until(lambda: not processes_of(run.path), "the ranks to save and leave")
    elif fault.key == "supervisor-term":
        assert start.wait(run, harness.LIMIT_S).status is Status.STOPPED
    elif fault.key == "supervisor-stop":
        time.sleep(0.3)
        supervisor = harness.supervisor_of(run)
        assert supervisor.is_frozen()
        assert run.read_state().observed().status.is_live
        supervisor.send(signal.SIGCONT)
    elif fault.process in ("torchrun", "rank") and fault.key != "torchrun-stop":
        until(
            lambda: run.read_state().attempt > attempt or not run.read_state().status.is_live,
            "another attempt",
        )
        assert run.read_state().status.is_live, run.read_state().message
