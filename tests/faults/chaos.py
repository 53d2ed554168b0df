"""Faults at random: which process gets which signal when, from a seed; and the invariants after each."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter

from engine.checkpoints import training
from engine.processes import ProcessId
from engine.run import start
from engine.run.directory import RunDirectory
from engine.run.job import processes_of
from engine.run.state import Status
from tests.faults import harness
from tests.faults.harness import until

NUMBERS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGSTOP)


class Chaos:
    """Disturbs a run until it has had enough faults or has finished."""

    def __init__(self, run: RunDirectory, expected: dict[int, float], seed: int, longest_wait_s: float) -> None:
        self.run, self.expected, self.random = run, expected, random.Random(seed)
        self.longest_wait_s = longest_wait_s
        self.counts: Counter[str] = Counter()
        self._best = 0

    def disturb(self, faults: int) -> None:
        """Up to `faults` faults, the invariants checked after each."""
        while self.counts.total() < faults:
            self._ensure_live()
            time.sleep(self.random.uniform(0, self.longest_wait_s))
            if self.run.read_state().status is Status.FINISHED:
                return
            self._strike()
            self.check()

    def check(self) -> None:
        """What must hold at any moment, disturbed or not."""
        self.run.read_state()  # whole, whoever was killed while writing it
        made = harness.losses(self.run)
        assert made.items() <= self.expected.items(), "a loss differs from the undisturbed run's"
        whole = training.newest_whole(self.run.checkpoints) or 0
        assert whole >= self._best, f"the last good checkpoint ({self._best}) is gone"
        self._best = whole

    def settle(self) -> None:
        """Let the run come to its end without further faults."""
        self._ensure_live()
        while start.wait(self.run, harness.LIMIT_S * 10).status is not Status.FINISHED:
            self._ensure_live()
        self.check()

    def _strike(self) -> None:
        process = self.random.choice(("supervisor", "torchrun", "rank"))
        number = self.random.choice(NUMBERS)
        target = self._target(process)
        if target is None or not target.send(number):
            return
        self.counts[f"{number.name} to {process}"] += 1
        if number is signal.SIGSTOP and process != "rank":
            # A frozen rank is the watchdog's affair; the others somebody wakes up again.
            time.sleep(self.random.uniform(0, 0.3))
            target.send(signal.SIGCONT)

    def _target(self, process: str) -> ProcessId | None:
        if process == "supervisor":
            return self.run.read_state().supervisor
        if process == "torchrun":
            return harness.launcher_of(self.run)
        ranks = harness.ranks_of(self.run)
        return self.random.choice(ranks) if ranks else None

    def _ensure_live(self) -> None:
        """Resume a run that is over but not finished, as a person would; nobody of it may be left then."""
        state = self.run.read_state().observed()
        if state.status.is_live or state.status is Status.FINISHED:
            return
        if state.status is not Status.LOST:
            until(lambda: not processes_of(self.run.path), "the processes of an ended run to be gone")
        start.resume(self.run)
