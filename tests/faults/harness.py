"""Runs to be disturbed, the processes in them, and what must hold after every fault."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.errors import RunError
from engine.paths import write_atomic
from engine.plan.layout import Layout
from engine.plan.plan import STEP_NAMES, Plan, PlannedStep
from engine.processes import ProcessId
from engine.run import start
from engine.run.directory import RunDirectory, read_records
from engine.run.job import processes_of
from engine.run.reports import read_reports
from engine.run.state import State, Status
from engine.settings import Settings
from tests.limits import LIMIT_S

DOUBLE = Path(__file__).with_name("fake_training.py")
ITERATIONS, INTERVAL, RANKS = 18, 6, 2
SETTINGS: dict[str, object] = {
    "model.name": "tiny",
    "training.iterations": ITERATIONS,
    "training.checkpoint_interval": INTERVAL,
    "launch.restarts": 3,
    "launch.restart_wait_s": 0,
    "launch.grace_s": 20,
}


def interpreter(directory: Path) -> Path:
    """A program that takes a Python's arguments and is FakeTraining."""
    path = directory / "fake-python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{DOUBLE}" "$@"\n')
    path.chmod(0o755)
    return path


def make_run(
    root: Path, python: Path, name: str = "", names: tuple[str, ...] = STEP_NAMES, **values: object
) -> RunDirectory:
    """A run by FakeTraining with the steps `names`, not started."""
    settings = Settings().with_values(SETTINGS | {"launch.python": str(python), "output.directory": str(root)} | values)
    steps = tuple(
        PlannedStep(name=step, ranks_per_node=RANKS if step == "train" else 1, why="a test") for step in names
    )
    plan = Plan(device="cpu", layout=Layout(dp=RANKS), ranks_per_node=RANKS, nodes=1, steps=steps)
    return start.create(settings, plan, name)


def until(claim: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait until `claim` is true. Raises AssertionError after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def finish(run: RunDirectory, limit_s: float = LIMIT_S) -> State:
    """Wait for the end, resuming once if the run stopped or was lost, and return how it ended."""
    state = start.wait(run, limit_s)
    if state.status in (Status.STOPPED, Status.LOST, Status.FAILED):
        until(lambda: not processes_of(run.path), "the ranks of a lost run to leave", limit_s)
        start.resume(run)
        state = start.wait(run, limit_s)
    return state


def losses(run: RunDirectory) -> dict[int, float]:
    """The last loss of each iteration: after a resume some are made again."""
    return {record["iteration"]: record["loss"] for record in read_records(run.metrics) if "loss" in record}


def kinds(run: RunDirectory) -> list[str]:
    return [record["kind"] for record in read_records(run.events) if "kind" in record]


def messages(run: RunDirectory, kind: str) -> list[str]:
    return [record["message"] for record in read_records(run.events) if record.get("kind") == kind]


def check_whole(run: RunDirectory, calm: RunDirectory, interval: int = INTERVAL) -> None:
    """The invariant: what recovered equals what was never disturbed, and nobody is left."""
    assert run.read_state().status is Status.FINISHED, run.read_state().message
    assert losses(run) == losses(calm)
    assert most_repeated(run) <= interval
    if (calm.export / "part-0").exists():
        assert (run.export / "part-0").read_bytes() == (calm.export / "part-0").read_bytes()
    check_nobody_left(run)


def most_repeated(run: RunDirectory) -> int:
    """The largest number of iterations that one recovery made again."""
    most = last = 0
    for record in read_records(run.metrics):
        if "loss" in record:
            most = max(most, last - record["iteration"] + 1)
            last = record["iteration"]
    return most


def check_nobody_left(run: RunDirectory) -> None:
    """No process of the run is alive once it is over, whoever its parent is. The supervisor may take a moment."""
    until(lambda: not processes_of(run.path), "the run's processes to be gone")
    supervisor = run.read_state().supervisor
    until(lambda: supervisor is None or not supervisor.is_alive(), "the supervisor to leave")


def supervisor_of(run: RunDirectory) -> ProcessId:
    supervisor = run.read_state().supervisor
    assert supervisor is not None
    return supervisor


def at_work(run: RunDirectory, step: str) -> bool:
    """True while a step's ranks have reported and it is not over."""
    state = run.read_state()
    return state.step == step and bool(ranks_of(run))


def ranks_of(run: RunDirectory) -> list[ProcessId]:
    """The ranks of the present attempt that are alive."""
    state = run.read_state()
    reports = read_reports(run.attempt(state.attempt, state.step)) if state.step else ()
    return [r.process for r in reports if r.outcome.value == "running" and r.process and r.process.is_alive()]


def launcher_of(run: RunDirectory) -> ProcessId | None:
    """torchrun, or the worker itself where there is none."""
    return run.read_state().job


def is_saving(run: RunDirectory) -> bool:
    """True while a checkpoint is half written."""
    return any(not (path / ".metadata").exists() for path in run.checkpoints.glob("iter_*"))


def end(run: RunDirectory) -> None:
    """End whatever a test has left, by exact processes."""
    try:
        supervisor = run.read_state().supervisor
    except RunError:
        supervisor = None
    if supervisor:
        supervisor.send(signal.SIGKILL)
    for process in processes_of(run.path):
        process.send(signal.SIGKILL)


def gptoss(*words: str) -> list[str]:
    """The command line of the program as people start it."""
    return [sys.executable, "-m", "gptoss_tui", *words]


def start_watcher(run: RunDirectory) -> subprocess.Popen[bytes]:
    """`gptoss attach --headless`: what looks at the run and must not matter to it."""
    words = gptoss("attach", str(run.path), "--headless")
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def copy(source: RunDirectory, root: Path, name: str) -> RunDirectory:
    """A run that is where `source` is, under another name."""
    shutil.copytree(source.path, root / name)
    return RunDirectory(root / name)


def rewind(run: RunDirectory, step: str) -> None:
    """Leave of a finished run what it had before `step`, which becomes its last."""
    done = STEP_NAMES.index(step)
    places = {"prepare": (run.data, run.model), "convert": (run.converted,), "export": (run.export,),
              "train": (run.checkpoints, run.tensorboard, run.path / "evaluation", run.metrics)}  # fmt: skip
    for name in STEP_NAMES[done:]:
        for place in places.get(name, ()):
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
    shutil.rmtree(run.attempts)
    run.attempts.mkdir()
    run.events.unlink()
    plan = run.read_plan()
    write_atomic(run.plan, replace(plan, steps=plan.steps[: done + 1]).to_json())
    state = run.read_state()
    steps = tuple(
        one if number < done else replace(one, status=Status.PENDING, attempt=0)
        for number, one in enumerate(state.steps[: done + 1])
    )
    results = {name: result for name, result in state.results.items() if name in STEP_NAMES[:done]}
    state = replace(state, name=run.name, status=Status.PENDING, steps=steps, step="", attempt=0, iteration=0,
                    supervisor=None, job=None, results=results)  # fmt: skip
    write_atomic(run.state, state.to_json())
