"""Notices that a step has come to a halt, and saves where each of its ranks stands.

Its clock is the monotonic one: a clock that is set must not end a training.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from engine.run import reports, side_scripts
from engine.run.directory import RunDirectory
from engine.run.reports import Outcome

PACE_TIMES = 10.0
"""A step whose signs of life are usually far apart may be silent for this many times as long."""
LOOKS = 20
"""How often the files are looked at within the allowed silence; a walk over a share is not free."""
DUMP_S = 5.0
"""How long the ranks may take to write their stacks."""
WRITTEN = ("checkpoints", "converted", ".converted.partial", "data", ".data.partial", "export", ".export.partial")
"""What grows while a step writes a large result and says nothing."""


class HangWatch:
    """The signs of life of one attempt: records, files that grow, and its logs until records come."""

    def __init__(self, run: RunDirectory, attempt: Path, allowed_s: float, now: float | None = None) -> None:
        """`allowed_s`: how long it may show no sign of life; 0 for ever."""
        self._run, self._attempt, self._allowed_s = run, attempt, allowed_s
        self._seen = time.monotonic() if now is None else now
        self._forgiven_s = 0.0
        self._next_look = 0.0
        self._gaps: deque[float] = deque(maxlen=64)
        self._written = (-1, -1)
        self._has_records = False

    @property
    def limit_s(self) -> float:
        """How long the present silence may last."""
        return max(self._allowed_s, PACE_TIMES * statistics.median(self._gaps) if self._gaps else 0.0)

    def note_records(self, count: int, now: float) -> None:
        """Ranks wrote `count` metrics, or said how far they are, since the last call."""
        if self._has_records:
            self._gaps.append((now - self._seen) / count)
        self._has_records = True
        self._is_alive(now)

    def _is_alive(self, now: float) -> None:
        self._seen, self._forgiven_s = now, 0.0

    def forgive(self, seconds: float) -> None:
        """Nobody looked for so long: that nothing was seen then says nothing of the ranks.

        On a share that makes every look slow that would forgive a hang for ever: absences that are shorter than what
        is allowed are forgiven once over, those that are longer always.
        """
        if seconds < self.limit_s:
            seconds = min(seconds, self.limit_s - self._forgiven_s)
            self._forgiven_s += seconds
        self._seen += seconds

    def silence_s(self, now: float) -> float | None:
        """How long nothing came, once that is too long; else None."""
        if not self._allowed_s or now < self._next_look:
            return None
        self._next_look = now + self._allowed_s / LOOKS
        # What waits in a queue, or for its image, may take for ever.
        if side_scripts.is_queued(self._attempt) and not reports.read_reports(self._attempt):
            self._is_alive(now)
        written = self._sizes()
        if written != self._written:
            self._written = written
            self._is_alive(now)
        silent = now - self._seen
        return silent if silent > self.limit_s else None

    def _sizes(self) -> tuple[int, int]:
        """Number and bytes of the files that a working step makes or prolongs."""
        found = [size for name in WRITTEN for size in _file_sizes(self._run.path / name)]
        # A library that waits for a lost peer may go on complaining in the logs.
        if not self._has_records:
            found += _file_sizes(self._attempt)
        return len(found), sum(found)


def save_stacks(attempt: Path) -> str:
    """Let every rank write its stacks beside its log; return a sentence about what came of it."""
    ranks = [report for report in reports.read_reports(attempt) if report.outcome is Outcome.RUNNING]
    frozen = [report.rank for report in ranks if report.process and report.process.is_frozen()]
    asked = sum(report.process.send(signal.SIGUSR1) for report in ranks if report.process)
    if not asked:
        asked = int(side_scripts.save_stacks(attempt))
    written = _await_stacks(attempt, asked - len(frozen)) if asked else []
    parts = []
    if written:
        parts.append(f"the stacks of {len(written)} of {len(ranks)} ranks are in {attempt.name}/rank-*.stacks")
    if frozen:
        numbers = ", ".join(map(str, frozen))
        parts.append(f"rank {numbers} was frozen from outside (SIGSTOP)")
    return "; ".join(parts) or "no rank could be asked for its stacks"


def _await_stacks(attempt: Path, asked: int) -> list[Path]:
    """The files with stacks, once `asked` ranks have written and nothing is added any more."""
    deadline = time.monotonic() + DUMP_S
    before: list[int] = []
    while True:
        files = [path for path in attempt.glob("rank-*.stacks") if path.stat().st_size]
        sizes = [path.stat().st_size for path in files]
        if (len(files) >= asked and sizes == before) or time.monotonic() > deadline:
            return files
        before = sizes
        time.sleep(0.2)


def _file_sizes(directory: Path) -> Iterator[int]:
    """The size of every file below `directory`; what vanishes meanwhile is left out."""
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                yield os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
