"""Rules that look at the present, not at a record: stall, gone process, GPUs, disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from engine.findings import Severity
from engine.monitor.alert import Alert, Facts
from engine.monitor.metrics import Record
from engine.monitor.statistics import Window


class GpuReading(Protocol):
    """What the rules read of one GPU: `GpuSample` has it."""

    @property
    def index(self) -> int: ...
    @property
    def utilisation_percent(self) -> int | None: ...
    @property
    def clock_mhz(self) -> int | None: ...
    @property
    def throttle_reasons(self) -> tuple[str, ...]: ...
    @property
    def ecc_uncorrected(self) -> int | None: ...
    @property
    def error(self) -> str: ...


class Stall:
    """No iteration for many times the usual pause between two records.

    Evaluation and saving are announced in the log or due by the settings; they get longer.
    """

    key = "stall"
    _TIMES = 8.0
    _LEAST_S = 60.0
    _LEAST_UNKNOWN_S = 300.0
    """Where pauses are not announced."""
    _PAUSE_S = 900.0
    _START_S = 2700.0
    """Until the first iterations: loading, compiling, connecting."""
    _ENDS = frozenset({"finished", "failed", "stopped", "step-finished", "step-failed", "step-stopped"})

    def __init__(self, facts: Facts, began: float) -> None:
        self._facts = facts
        self._gaps = Window(64)
        self._longest_pause = 0.0
        self._iteration: int | None = None
        self._t: float | None = None
        self._seen = began
        self._in_pause = False
        self._pauses_known = bool(facts.evaluation_interval or facts.checkpoint_interval)
        self._is_over = False
        self._said = False
        self.is_paused = True
        """True while no work on GPUs is expected: start-up, evaluation, saving, after the end."""

    def feed(self, record: Record, now: float) -> Alert | None:
        self._seen = now
        kind = record.get("kind")
        if kind == "phase":
            self._in_pause = self._pauses_known = self.is_paused = True
            return None
        if kind is not None:
            self._is_over = kind in self._ENDS or (self._is_over and kind != "step-started")
            self.is_paused = self.is_paused or self._is_over
            self._in_pause = self._in_pause or kind == "checkpoint"  # told when it is over, before the next record
            if kind in ("resumed", "step-started", "restart"):
                self._forget()
            return None
        if not isinstance(iteration := record.get("iteration"), int) or "validation_loss" in record:
            return None
        return self._note(record, iteration)

    def catch_up(self, seen: float) -> None:
        """Count the silence from `seen`."""
        self._seen = seen

    def tick(self, now: float) -> Alert | None:
        """Look at the clock; nothing new may have come."""
        silent = now - self._seen
        limit = self.limit_s
        if self._is_over or self._said or silent <= limit:
            return None
        self._said = True
        return self._alert(now, silent, limit, "nothing has come since")

    @property
    def limit_s(self) -> float:
        """How long a silence may last now."""
        if len(self._gaps) < 3:
            return self._START_S
        least = self._LEAST_S if self._pauses_known else self._LEAST_UNKNOWN_S
        usual = max(least, self._TIMES * self._gaps.median, 2 * self._gaps.largest)
        if self._in_pause or self._is_due():
            return max(usual, self._PAUSE_S, 3 * self._longest_pause)
        return usual

    def _note(self, record: Record, iteration: int) -> Alert | None:
        last_t, last_iteration = self._t, self._iteration
        self._t, self._iteration = float(record["t"]), iteration
        was_pause = self._in_pause or (last_iteration is not None and self._is_due(last_iteration))
        was_stall, self._said = self._said, False
        self._in_pause = self._is_over = False
        self.is_paused = len(self._gaps) < 3
        if last_t is None or last_iteration is None or iteration <= last_iteration:
            return None  # the first one, or a restart
        gap = self._t - last_t
        if was_pause:
            self._longest_pause = max(self._longest_pause, gap)
            return None
        alert = None
        if len(self._gaps) >= 8 and gap > max(self._PAUSE_S, 20 * self._gaps.median):
            alert = self._alert(self._t, gap, 20 * self._gaps.median, "then it went on")
        elif gap >= 0 and not was_stall:
            self._gaps.add(gap)
        return alert

    def _is_due(self, iteration: int | None = None) -> bool:
        """True when the settings say that a pause follows the iteration."""
        iteration = self._iteration if iteration is None else iteration
        intervals = (self._facts.checkpoint_interval, self._facts.evaluation_interval)
        return any(every and iteration and iteration % every == 0 for every in intervals)

    def _forget(self) -> None:
        self._gaps.clear()
        self._t = self._iteration = None
        self.is_paused = True

    def _alert(self, t: float, silent: float, limit: float, words: str) -> Alert:
        usual = f"usually {self._gaps.median:.1f} s apart" if len(self._gaps) else "none had come before"
        return Alert(
            key=self.key,
            severity=Severity.ERROR,
            message=f"no iteration for {silent:,.0f} s",
            evidence=f"records are {usual}, allowed {limit:,.0f} s; {words}",
            cause="one rank waits for another that hangs or died, or storage does not answer",
            next_step="look for the rank whose log stopped first; its stacks: kill -USR1 PID, or py-spy dump",
            t=t,
            iteration=self._iteration,
        )


class GpuWatch:
    """Readings of the GPUs that a job uses: lost, damaged, idle, throttled, slow clock."""

    _LOST_S = 2.0
    _IDLE_PERCENT = 5
    _IDLE_S = 120.0
    _THROTTLED_S = 60.0
    _SLOW_CLOCK = 0.8
    _HARMFUL = frozenset({"hardware slowdown", "software thermal slowdown", "hardware thermal slowdown", "power brake"})
    """A power cap is how a GPU under full load runs."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], float] = {}
        self._said: set[tuple[str, int]] = set()
        self._known: set[int] = set()
        self._ecc: dict[int, int] = {}

    def feed(self, samples: Iterable[GpuReading], now: float, *, is_working: bool) -> list[Alert]:
        """Judge one reading of every GPU."""
        readings = list(samples)
        gone = self._known - {reading.index for reading in readings}
        self._known |= {reading.index for reading in readings}
        for reading in readings:
            if not reading.error:
                self._lasts("lost", reading.index, False, now, 0)
        alerts = [self._lost(index, "the driver no longer lists it", now) for index in sorted(gone)]
        alerts += [self._lost(reading.index, reading.error, now) for reading in readings if reading.error]
        alerts += [self._damaged(reading.index, reading.ecc_uncorrected, now) for reading in readings]
        alerts += [self._idle(reading, now, is_working) for reading in readings if not reading.error]
        alerts += [self._throttled(reading, now) for reading in readings if not reading.error]
        clocks = sorted(reading.clock_mhz for reading in readings if reading.clock_mhz)
        if len(clocks) >= 2 and is_working:
            usual = clocks[len(clocks) // 2]
            alerts += [self._slow(reading, usual, now) for reading in readings if reading.clock_mhz]
        return [alert for alert in alerts if alert is not None]

    def _lasts(self, rule: str, index: int, is_so: bool, now: float, seconds: float) -> bool:
        """True once, when something has been so for `seconds`."""
        key = (rule, index)
        if not is_so:
            self._since.pop(key, None)
            self._said.discard(key)
            return False
        began = self._since.setdefault(key, now)
        if key in self._said or now - began < seconds:
            return False
        self._said.add(key)
        return True

    def _lost(self, index: int, why: str, now: float) -> Alert | None:
        # One reading that fails is no proof.
        if not self._lasts("lost", index, True, now, self._LOST_S):
            return None
        return _gpu_alert("gpu.lost", Severity.ERROR, index, now, "is gone", why,
                          "it fell off the bus: power, heat, a damaged GPU or driver",
                          "dmesg | grep -i xid; reset or reboot, leave the node out if it comes back")  # fmt: skip

    def _damaged(self, index: int, count: int | None, now: float) -> Alert | None:
        if count is None:
            return None
        before = self._ecc.setdefault(index, count)
        self._ecc[index] = max(before, count)
        if count <= before:
            return None
        return _gpu_alert("gpu.ecc", Severity.ERROR, index, now, "has memory errors that cannot be corrected",
                          f"{count - before} new, {count} in all", "its memory is failing",
                          "nvidia-smi --gpu-reset when it is free; replace it if they return")  # fmt: skip

    def _idle(self, reading: GpuReading, now: float, is_working: bool) -> Alert | None:
        use = reading.utilisation_percent
        is_idle = is_working and use is not None and use <= self._IDLE_PERCENT
        if not self._lasts("idle", reading.index, is_idle, now, self._IDLE_S):
            return None
        return _gpu_alert("gpu.idle", Severity.WARNING, reading.index, now, "is idle while the job runs",
                          f"{use} % used for {self._IDLE_S:.0f} s", "its rank waits for data, storage or another rank",
                          "look at its rank's log and at the load of the host's CPUs and disks")  # fmt: skip

    def _throttled(self, reading: GpuReading, now: float) -> Alert | None:
        harmful = [reason for reason in reading.throttle_reasons if reason in self._HARMFUL]
        if not self._lasts("throttled", reading.index, bool(harmful), now, self._THROTTLED_S):
            return None
        return _gpu_alert("gpu.throttled", Severity.WARNING, reading.index, now, "slows itself down",
                          f"{', '.join(harmful)} for {self._THROTTLED_S:.0f} s", "heat, or too little power",
                          "check cooling, fans and power supply; all ranks run at the pace of the slowest")  # fmt: skip

    def _slow(self, reading: GpuReading, usual: int, now: float) -> Alert | None:
        clock = reading.clock_mhz or 0
        is_slow = clock < self._SLOW_CLOCK * usual and (reading.utilisation_percent or 0) > self._IDLE_PERCENT
        if not self._lasts("clock", reading.index, is_slow, now, self._THROTTLED_S):
            return None
        return _gpu_alert("gpu.slow-clock", Severity.WARNING, reading.index, now, "runs at a low clock",
                          f"{clock} MHz, the others about {usual} MHz", "it is throttled, or its clocks were limited",
                          "nvidia-smi -q -d CLOCK,PERFORMANCE; nvidia-smi -rgc removes a limit")  # fmt: skip


class DiskWatch:
    """Free space against the next checkpoint."""

    key = "disk.full"
    _MARGIN = 1.1

    def __init__(self, facts: Facts) -> None:
        self._need_gib = facts.checkpoint_gib
        self._said = False

    def note_checkpoint(self, size_gib: float) -> None:
        """The size of a checkpoint that was written."""
        self._need_gib = max(self._need_gib, size_gib)

    def feed(self, free_gib: float, now: float) -> Alert | None:
        """Judge the free space where checkpoints go."""
        need = self._need_gib * self._MARGIN
        if free_gib >= need:
            self._said = False
            return None
        if self._said or not need:
            return None
        self._said = True
        return Alert(
            key=self.key,
            severity=Severity.ERROR,
            message="the disk will be full before the next checkpoint is written",
            evidence=f"{free_gib:,.1f} GiB free, a checkpoint takes {self._need_gib:,.1f} GiB",
            cause="old checkpoints, other users of the disk, or a checkpoint larger than planned",
            next_step="delete old checkpoints or lower output.keep_checkpoints; Megatron writes the new one before "
            "it deletes the oldest",
            t=now,
        )


def process_gone(now: float, iteration: int | None) -> Alert:
    """The alert for a job whose process ended without a word."""
    return Alert(
        key="process.gone",
        severity=Severity.ERROR,
        message="the training process is gone",
        evidence="its process has ended and nothing reported an end",
        cause="killed from outside, by the kernel for lack of memory, or the machine was restarted",
        next_step="dmesg | grep -i 'out of memory'; then resume: gptoss run --resume RUN",
        t=now,
        iteration=iteration,
    )


def _gpu_alert(
    key: str, severity: Severity, index: int, now: float, what: str, evidence: str, cause: str, next_step: str
) -> Alert:
    return Alert(key=key, severity=severity, message=f"GPU {index} {what}", evidence=evidence, cause=cause,
                 next_step=next_step, t=now, subject=f"GPU {index}")  # fmt: skip
