"""Rules about pace, time and memory: slower, one slow rank, stalled, clocks, creeping memory, missed checkpoints."""

from __future__ import annotations

from engine.findings import Severity
from engine.monitor.alert import Alert, Facts, number
from engine.monitor.metrics import Record
from engine.monitor.statistics import Quarters, Window


class ThroughputDrop:
    """Iterations take clearly longer than they did, for many records."""

    key = "throughput.drop"
    _WARM_UP = 5
    """Records left out: the first iterations compile, allocate and connect."""
    _LEAST_RISE = 0.2
    _SPREADS = 4.0

    def __init__(self) -> None:
        self._seen = 0
        self._recent = Window(15)
        self._usual = Window(50)
        self._best = 0.0
        self._best_spread = 0.0
        self._slow_in_a_row = 0

    def feed(self, record: Record) -> Alert | None:
        seconds = number(record, "iteration_s")
        if seconds is None or seconds <= 0:
            return None
        self._seen += 1
        if self._seen <= self._WARM_UP:
            return None
        # A batch that is ramped up takes longer and is no slower.
        pace = seconds / (number(record, "global_batch") or 1.0)
        self._recent.add(pace)
        self._usual.add(pace)
        self._note_best()
        if not self._best or not self._recent.is_full:
            return None
        limit = self._best * (1 + self._LEAST_RISE + self._SPREADS * self._best_spread)
        self._slow_in_a_row = self._slow_in_a_row + 1 if self._recent.median > limit else 0
        if self._slow_in_a_row != 15:
            return None
        return self._alert(record)

    def _note_best(self) -> None:
        if len(self._usual) < 30:
            return
        median = self._usual.median
        if not self._best or median < self._best:
            self._best, self._best_spread = median, self._usual.spread / median

    def _alert(self, record: Record) -> Alert:
        slower = self._recent.median / self._best
        return Alert(
            key=self.key,
            severity=Severity.WARNING,
            message=f"iterations take {slower:.1f} times as long as before",
            evidence=f"median of the last 15 records against the best 50 (scatter {self._best_spread * 100:.0f} %)",
            cause="a throttled or shared GPU, a slow node or link, slow storage for the data",
            next_step="look at clocks and throttling of the GPUs and at the load of the hosts; see also slow rank",
            t=record["t"],
            iteration=record.get("iteration"),
        )


class SlowRank:
    """The same rank is the slowest again and again, by a margin.

    From Megatron's straggler report (core/utils.py, StragglerDetector.report).
    """

    key = "rank.slow"
    _MARGIN = 1.25
    _TIMES = 3

    def __init__(self) -> None:
        self._rank: object = None
        self._times = 0

    def feed(self, record: Record) -> Alert | None:
        slow, fast = number(record, "slowest_rank_s"), number(record, "fastest_rank_s")
        if slow is None or not fast:
            return None
        rank = record.get("slowest_rank")
        is_slow = slow >= self._MARGIN * fast
        self._times = self._times + 1 if is_slow and rank == self._rank else int(is_slow)
        self._rank = rank if is_slow else None
        if self._times != self._TIMES:
            return None
        return Alert(
            key=self.key,
            severity=Severity.WARNING,
            message=f"rank {rank} is slower than the others and holds them up",
            evidence=f"{slow * 1000:.0f} ms, the fastest {fast * 1000:.0f} ms, {self._TIMES} reports in a row",
            cause="its GPU is throttled, shared or damaged, or its host or link is slow",
            next_step="look at that GPU (nvidia-smi -q -d CLOCK,PERFORMANCE,ECC) and leave its node out if it stays so",
            t=record["t"],
            iteration=record.get("iteration"),
            subject=f"rank {rank}",
        )


class MemoryCreep:
    """Memory that grows all the time, judged at each doubling of the history."""

    key = "memory.creep"
    _LEAST_RECORDS = 128
    _GROWTH = 0.03
    _LATE_GROWTH = 0.01

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._memory = Quarters()

    def feed(self, record: Record) -> Alert | None:
        memory = number(record, "memory_gib")
        if memory is None or memory <= 0:
            return None
        if not self._memory.add(memory) or len(self._memory) < self._LEAST_RECORDS:
            return None
        second, third, last = (self._memory.quarter(number_).mean for number_ in (1, 2, 3))
        # A new highest peak now and then is normal; growth in every part of the history is not.
        if last / second - 1 < self._GROWTH or last / third - 1 < self._LATE_GROWTH:
            return None
        rate = (last - second) / (len(self._memory) / 2)
        evidence = f"{second:.2f} GiB in the second quarter of the run, {last:.2f} GiB in the last"
        if self._facts.memory_gib > memory and rate > 0:
            evidence += f"; full in about {(self._facts.memory_gib - memory) / rate:,.0f} records"
        return Alert(
            key=self.key,
            severity=Severity.WARNING,
            message="memory keeps growing",
            evidence=evidence,
            cause="something is kept from every iteration, or fragmentation grows",
            next_step="let it save, then resume: a new process starts small; set "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True against fragmentation",
            t=record["t"],
            iteration=record.get("iteration"),
        )


class ClockSkew:
    """Times that run backwards although the iterations go on."""

    key = "clock.skew"
    _BACK_S = 5.0
    _AHEAD_S = 60.0

    def __init__(self) -> None:
        self._t: float | None = None
        self._iteration = -1
        self._said_ahead = False

    def feed(self, record: Record, now: float | None = None) -> Alert | None:
        iteration, t = record.get("iteration"), float(record["t"])
        if not isinstance(iteration, int):
            return None
        goes_on = iteration > self._iteration
        last, self._t, self._iteration = self._t, t, iteration
        if last is not None and goes_on and t < last - self._BACK_S:
            return self._alert(record, f"a record is {last - t:.0f} s older than the one before it")
        # Only our own workers write times with a zone.
        if now is not None and "step" in record and t > now + self._AHEAD_S and not self._said_ahead:
            self._said_ahead = True
            return self._alert(record, f"a record is {t - now:.0f} s ahead of this machine's clock")
        return None

    def _alert(self, record: Record, evidence: str) -> Alert:
        return Alert(
            key=self.key,
            severity=Severity.INFO,
            message="clocks disagree",
            evidence=evidence,
            cause="the clock was set, or two machines are not synchronised",
            next_step="check chronyc tracking or timedatectl on the machines; times and rates shown may be off",
            t=record["t"],
            iteration=record.get("iteration"),
        )


class MissedCheckpoint:
    """A checkpoint was due and none was written."""

    key = "checkpoint.missing"
    _LEAST_SLACK = 10

    def __init__(self, facts: Facts) -> None:
        self._interval = facts.checkpoint_interval
        self._saved: int | None = None
        self._intervals: list[int] = []
        self._said = False
        self._first: int | None = None

    def feed(self, record: Record) -> Alert | None:
        iteration = record.get("iteration")
        if not isinstance(iteration, int):
            return None
        if record.get("kind") == "checkpoint":
            self._note(iteration)
            return None
        if "kind" in record or "loss" not in record:
            return None
        if self._first is None or iteration < self._first:
            self._first = iteration
        return self._judge(record, iteration)

    def _judge(self, record: Record, iteration: int) -> Alert | None:
        if not self._interval or self._first is None:
            return None
        due = iteration // self._interval * self._interval
        slack = max(self._LEAST_SLACK, self._interval // 2)
        is_missing = due > self._first and (self._saved is None or self._saved < due)
        if not is_missing or iteration < due + slack or self._said:
            return None
        self._said = True
        return Alert(
            key=self.key,
            severity=Severity.ERROR,
            message=f"the checkpoint of iteration {due} was not written",
            evidence=f"now at iteration {iteration}; last checkpoint "
            + ("none" if self._saved is None else f"{self._saved}")
            + f", due every {self._interval}",
            cause="saving failed or hangs: disk full, storage gone, or an asynchronous save that never ended",
            next_step="check free space and the log for the save; a crash now would lose everything since the last one",
            t=record["t"],
            iteration=iteration,
        )

    def _note(self, iteration: int) -> None:
        """Remember a checkpoint; two equal distances tell the interval of a job that nobody described."""
        if self._saved is not None and iteration > self._saved:
            self._intervals = [*self._intervals[-1:], iteration - self._saved]
            if not self._interval and len(self._intervals) == 2 and self._intervals[0] == self._intervals[1]:
                self._interval = self._intervals[0]
        self._saved, self._said = iteration, False
