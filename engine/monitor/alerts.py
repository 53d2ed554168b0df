"""All rules over one job: feed it records, readings and the clock; it says what it noticed.

Pure: it reads no file and no clock of its own. The supervisor, `gptoss watch` and replays of
recorded runs use the same object. docs/monitoring.md describes each rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from engine.monitor.alert import Alert, Facts
from engine.monitor.expert_rules import StarvingExpert
from engine.monitor.loss_rules import Divergence, LossSpike, NotANumber, Plateau, SkippedIterations
from engine.monitor.metrics import Record
from engine.monitor.pace_rules import ClockSkew, MemoryCreep, MissedCheckpoint, SlowRank, ThroughputDrop
from engine.monitor.watch_rules import DiskWatch, GpuReading, GpuWatch, Stall, process_gone


class Rule(Protocol):
    """A state machine over the records of one job."""

    def feed(self, record: Record) -> Alert | None:
        """What `record` tells, if anything; bounded work."""


class AlertWatch:
    """The alerts of one job. Give it everything in the order in which it happened."""

    def __init__(self, facts: Facts | None = None, began: float = 0.0) -> None:
        """`began`: when the watching began, unix seconds; the first iteration is awaited from then."""
        facts = facts or Facts()
        self._rules: tuple[Rule, ...] = (
            NotANumber(),
            SkippedIterations(),
            LossSpike(),
            Divergence(),
            Plateau(facts),
            ThroughputDrop(),
            SlowRank(),
            MemoryCreep(facts),
            MissedCheckpoint(facts),
            StarvingExpert(),
        )
        self._clock = ClockSkew()
        self._stall = Stall(facts, began)
        self._gpus = GpuWatch()
        self._disk = DiskWatch(facts)
        self._iteration: int | None = None
        self._is_gone = False

    def feed(self, record: Record, now: float | None = None) -> list[Alert]:
        """Take a metric or event record that arrived at `now` (its own time when replayed)."""
        if record.get("kind") == "alert" or not isinstance(record.get("t"), (int, float)):
            return []
        if record.get("step") not in (None, "train"):
            return []  # other steps have no iterations to judge
        if isinstance(record.get("iteration"), int) and "kind" not in record:
            self._iteration = record["iteration"]
            self._is_gone = False
        found = [rule.feed(record) for rule in self._rules]
        found.append(self._clock.feed(record, now))
        found.append(self._stall.feed(record, float(record["t"]) if now is None else now))
        return [alert for alert in found if alert is not None]

    def catch_up(self, seen: float) -> None:
        """After a backlog: the job last gave a sign of life at `seen`, by this machine's clock."""
        self._stall.catch_up(seen)

    def tick(self, now: float, *, is_alive: bool = True) -> list[Alert]:
        """Look at the clock; call it every second or so. `is_alive`: whether the job's process runs."""
        if is_alive:
            alert = self._stall.tick(now)
            return [alert] if alert else []
        if self._is_gone:
            return []
        self._is_gone = True
        return [process_gone(now, self._iteration)]

    @property
    def silence_limit_s(self) -> float:
        """How long the job may say nothing now before that is a stall."""
        return self._stall.limit_s

    def feed_gpus(self, samples: Iterable[GpuReading], now: float) -> list[Alert]:
        """Take one reading of the GPUs of the job."""
        return self._gpus.feed(samples, now, is_working=not self._stall.is_paused)

    def feed_disk(self, free_gib: float, now: float) -> list[Alert]:
        """Take the free space where checkpoints are written."""
        alert = self._disk.feed(free_gib, now)
        return [alert] if alert else []

    def note_checkpoint(self, size_gib: float) -> None:
        """Tell the size of a checkpoint that was written."""
        self._disk.note_checkpoint(size_gib)


def replay(records: Iterable[Record], facts: Facts | None = None) -> list[Alert]:
    """Every alert that the recorded `records` would have raised."""
    watch = AlertWatch(facts)
    return [alert for record in records for alert in watch.feed(record)]
