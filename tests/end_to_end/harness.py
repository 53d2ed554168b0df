"""Run directories and workers for the tests: made, started, waited for, read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.plan.layout import Layout
from engine.plan.plan import STEP_NAMES, Plan, PlannedStep
from engine.run.directory import RunDirectory, create, read_records
from engine.settings import Settings
from engine.settings_file import save
from tests.limits import LONG_LIMIT_S

SMALL: dict[str, object] = {
    "model.name": "tiny",
    "model.converter": "bridge",
    "data.source": "sample",
    "data.max_megabytes": 0.3,
    "training.iterations": 8,
    "training.sequence_length": 64,
    "training.global_batch": 8,
    "training.micro_batch": 2,
    "training.learning_rate": 3e-3,
    "training.warmup_iterations": 2,
    "training.weight_decay": 0.0,
    "training.precision": "fp32",
    "training.checkpoint_interval": 4,
    "training.evaluation_interval": 4,
    "training.evaluation_iterations": 2,
    "layout.mode": "manual",
    "machine.device": "cpu",
}
"""A whole path within seconds, long enough that the loss falls and the window is exceeded."""


class Failed(Exception):
    """A worker ended badly; its logs are in the message."""


@dataclass(frozen=True, slots=True)
class Started:
    """The ranks of one worker at work."""

    run: RunDirectory
    worker: str
    attempt: Path
    pids: list[int]

    def signal_all(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)


class Zygote:
    """The client of zygote.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._attempts = 0
        self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=LONG_LIMIT_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, worker: str, run: RunDirectory, ranks: int = 1, without: tuple[str, ...] = ()) -> Started:
        self._attempts += 1
        attempt = run.attempt(self._attempts, worker)
        request = {
            "start": worker,
            "run": str(run.path),
            "attempt": str(attempt),
            "ranks": ranks,
            "without": without,
        }
        return Started(run, worker, attempt, self._ask(request)["pids"])

    def wait(self, started: Started) -> list[int | None]:
        codes: list[int | None] = self._ask({"wait": started.pids, "timeout_s": LONG_LIMIT_S})["codes"]
        return codes

    def run(self, worker: str, run: RunDirectory, ranks: int = 1, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """Run a worker to its end and return its result. Raises Failed."""
        started = self.start(worker, run, ranks, without)
        codes = self.wait(started)
        if any(code != 0 for code in codes):
            raise Failed(f"{worker}: exit codes {codes}\n{logs(started.attempt)}")
        return result_of(started.attempt)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the zygote ended with {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply


def make_run(
    root: Path, name: str, changes: dict[str, object] | None = None, layout: Layout | None = None
) -> RunDirectory:
    """An empty run directory with the small settings and a plan for `layout`."""
    run = create(root, name)
    configure(run, changes, layout)
    return run


def configure(run: RunDirectory, changes: dict[str, object] | None = None, layout: Layout | None = None) -> None:
    """Write the settings and the plan of `run`, over older ones if there are any."""
    layout = layout or Layout()
    save(Settings().with_values({**SMALL, **(changes or {})}), run.settings)
    steps = tuple(
        PlannedStep(name=step, ranks_per_node=layout.world_size if step == "train" else 1, why="")
        for step in STEP_NAMES
    )
    plan = Plan(device="cpu", layout=layout, ranks_per_node=layout.world_size, nodes=1, steps=steps)
    run.plan.write_text(plan.to_json(), encoding="utf-8")


def copy_run(source: RunDirectory, root: Path, name: str) -> RunDirectory:
    """A run that begins where `source` is now."""
    shutil.copytree(source.path, root / name)
    return RunDirectory(root / name)


def result_of(attempt: Path) -> dict[str, Any]:
    """What the ranks of an attempt reported together."""
    result: dict[str, Any] = {}
    for path in sorted(attempt.glob("rank-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        result |= record.get("result", {})
    return result


def outcomes(attempt: Path) -> list[str]:
    return [json.loads(path.read_text(encoding="utf-8"))["outcome"] for path in sorted(attempt.glob("rank-*.json"))]


def error_of(attempt: Path) -> dict[str, Any]:
    """The error record of the rank that failed first."""
    errors = [json.loads(path.read_text(encoding="utf-8")) for path in attempt.glob("error-rank-*.json")]
    first: dict[str, Any] = min(errors, key=lambda error: error["t"])
    return first


def logs(attempt: Path) -> str:
    """The end of every log of an attempt."""
    tails = (f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in attempt.glob("*.log"))
    return "\n".join(tails)


def losses(run: RunDirectory) -> dict[int, float]:
    """Training loss by iteration; the last record of an iteration counts."""
    return {r["iteration"]: r["loss"] for r in read_records(run.metrics) if "loss" in r}


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for `condition`. Raises Failed when it does not come true in time."""
    deadline = time.monotonic() + LONG_LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"timed out waiting for {what}")
        time.sleep(0.01)
