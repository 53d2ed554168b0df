"""What ends an attempt that neither ends by itself nor is ended by a person: a lost rank, a hang, a full disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.run import rotation, watchdog
from engine.run.directory import RunDirectory
from engine.run.health import Health
from engine.run.reports import Outcome, Verdict, read_reports
from engine.run.watchdog import HangWatch
from engine.settings import Settings

END_OF_ALLOCATION = "SLURM_JOB_END_TIME"
"""Unix seconds at which Slurm ends the allocation that we run in; Slurm 22.05 and later set it."""
SPARE_S = 60.0
"""How much sooner than the settings say the saving begins: Slurm's clock is not ours, and a stop takes a moment."""
ABSENT_S = 2.0
"""Looks that are further apart mean that this process was held up: frozen, or by a share that gave no answer. The
ranks may have been held up with it."""
LOST_S = 3.0
"""How long a rank may be gone without a report while its step goes on. The others wait for it in NCCL, and
torchrun gives them `launch.grace_s` to leave."""


class Oversight:
    """Looks after one attempt, about ten times a second."""

    def __init__(
        self, run: RunDirectory, attempt: Path, settings: Settings, health: Health, tell: Callable[[str, str], None]
    ) -> None:
        """`tell(kind, message)` adds an event to the run."""
        self._run, self._attempt, self._health, self._tell = run, attempt, health, tell
        self._hang = HangWatch(run, attempt, settings.launch.hang_s)
        self._records = health.records
        self._settings = settings
        # Bridge's worker deletes old checkpoints after each save; Megatron-LM and the tutorial's script keep all.
        self._rotates = settings.launch.route != "bridge"
        self._rotated: int | None = None
        self._is_training = attempt.name.endswith("-train")
        self._sees_ranks = settings.launch.launcher == "local"  # else their pids are those of a container or a node
        self._next_look = 0.0
        self._last_look = time.monotonic()
        self._lost_since: float | None = None
        health.reached = None  # what an earlier attempt reached says nothing of the next save

    def look(self) -> Verdict | None:
        """The verdict on an attempt that must be ended now, else None; without a message the ranks' reports say why."""
        now = time.monotonic()
        if (absent := now - self._last_look) > ABSENT_S:
            self._hang.forgive(absent)
        self._last_look = now
        if new := self._health.records - self._records:
            self._records = self._health.records
            self._hang.note_records(new, now)
        silent = self._hang.silence_s(now)
        if silent is not None:
            return self._hung(silent)
        if now < self._next_look:
            return None
        self._next_look = now + 1.0
        if self._sees_ranks and self._has_lost_a_rank(now):
            return Verdict(outcome=Outcome.FAILED)
        if self._is_training and self._rotates:
            self._rotate()
        if self._is_training and (short := self._health.space.look(self._health.reached, now)):
            hint = f"free some space, then: gptoss run --resume {self._run.name}"
            return Verdict(outcome=Outcome.FAILED, message=short, hint=hint, is_curable=False)
        return None

    def _rotate(self) -> None:
        newest = self._run.last_checkpoint()
        if newest is not None and newest != self._rotated:
            rotation.rotate(self._run, self._settings)
            self._rotated = newest

    def _has_lost_a_rank(self, now: float) -> bool:
        """True once a rank has been gone without a report for a while."""
        ranks = [report for report in read_reports(self._attempt) if report.outcome is Outcome.RUNNING]
        if all(report.process is None or report.process.is_alive() for report in ranks):
            self._lost_since = None
            return False
        self._lost_since = now if self._lost_since is None else self._lost_since
        return now - self._lost_since >= LOST_S

    def _hung(self, silent: float) -> Verdict:
        message = f"no sign of life for {silent:,.0f} s (launch.hang_s allows {self._hang.limit_s:,.0f})"
        self._tell("hang", f"{message}; saving the stacks of all ranks")
        found = watchdog.save_stacks(self._attempt)
        return Verdict(
            outcome=Outcome.FAILED,
            message=f"it hung: {message}; {found}",
            hint=f"read {self._attempt.name}/rank-*.stacks for where each rank waits",
        )


def stop_before(grace_s: float, now: float, environ: Mapping[str, str] | None = None) -> float | None:
    """When to begin saving because Slurm ends the allocation around us, in unix seconds; None without one.

    A batch job of our own is told by Slurm itself (`#SBATCH --signal`).
    """
    text = (os.environ if environ is None else environ).get(END_OF_ALLOCATION, "")
    if not text.isdecimal():
        return None
    end = float(text)
    # A short allocation is not spent on waiting for its end.
    return end - min(grace_s + SPARE_S, max(0.0, end - now) / 2)
