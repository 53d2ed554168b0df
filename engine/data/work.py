"""Units through the tokenising processes and, in order, into the output."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from engine.data import tokens, units
from engine.data.job import Job, Result
from engine.data.merge import Merger
from engine.data.pool import Pool
from engine.data.request import Request, Status, Tell
from engine.data.sources import total_bytes

WORKER_MEMORY_MIB = 320
"""A tokenising process that has grown beyond this is replaced by a new one."""

_REFERENCE_MEMORY_MIB = 640
"""`tokenizers` takes more for a vocabulary of 200,000."""
_WAIT_S = 0.5
_AHEAD_PER_WORKER = 8
"""How many units may be ready before the one that is next in the output."""


class Work:
    """One pass over all units."""

    def __init__(self, request: Request, job: Job, merger: Merger, tell: Tell) -> None:
        files = list(request.files)
        self._job = job
        self._merger = merger
        self._tell = tell
        self._workers = request.workers or default_workers()
        self._pace = _Pace(min(total_bytes(files), request.limit_bytes or total_bytes(files)))
        cutter = units.Cutter(files, units.unit_bytes(total_bytes(files)), merger.spool, merger.is_done)
        self._units = _limited(cutter.units(), request.limit_bytes)
        self._files = files
        self._ready: dict[int, Result] = {}
        self._sizes: dict[int, int] = {}
        self._is_cut = False

    def carry_out(self) -> str:
        """Do it; return how gigatoken differs from the reference, or nothing. Raises EngineError, DiskFull, OSError."""
        memory = WORKER_MEMORY_MIB if self._job.encoder == tokens.GIGATOKEN else _REFERENCE_MEMORY_MIB
        try:
            with Pool(self._job, self._workers, memory) as pool:
                if self._job.encoder == tokens.GIGATOKEN:
                    pool.compare(self._files)
                while not self._is_cut or pool.is_busy or self._ready:
                    self._feed(pool)
                    self._collect(pool)
                    if pool.difference():
                        return pool.difference()
                pool.wait_for_comparison()
                if pool.difference():
                    return pool.difference()
            self._merger.commit()
            return ""
        finally:
            self._merger.close()

    def _feed(self, pool: Pool) -> None:
        """Hand out units while a process wants one, unless the output waits for a slow one."""
        while not self._is_cut and pool.wants_more and len(self._ready) < _AHEAD_PER_WORKER * self._workers:
            unit = next(self._units, None)
            if unit is None:
                self._is_cut = True
                return
            if unit.number < self._merger.current.units:
                self._pace.skip(unit.size_bytes)
                continue
            self._sizes[unit.number] = unit.size_bytes
            finished = self._merger.finished(unit.number)
            if finished is None:
                pool.give(unit)
            else:
                self._ready[unit.number] = finished
                _drop_spools(unit)

    def _collect(self, pool: Pool) -> None:
        for unit, result in pool.results(_WAIT_S if pool.is_busy else 0):
            self._ready[unit.number] = result
            _drop_spools(unit)
        merger = self._merger
        while merger.current.units in self._ready:
            number = merger.current.units
            merger.add(self._ready.pop(number))
            self._pace.add(self._sizes.pop(number))
        counts = merger.current.counts
        self._tell(self._pace.status(sum(counts.documents.values()), sum(counts.tokens.values())))


def default_workers(available_mib: int | None = None) -> int:
    """One process for each core this process may use, fewer where memory is short."""
    cores = len(os.sched_getaffinity(0))
    available = _available_mib() if available_mib is None else available_mib
    return max(1, min(cores, int(available * 0.7) // WORKER_MEMORY_MIB))


class _Pace:
    """Speed and what is left."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = self._done_here = 0
        self._started = time.monotonic()
        self._before: tuple[int, int] | None = None

    def add(self, size: int) -> None:
        self._done += size
        self._done_here += size

    def skip(self, size: int) -> None:
        """Count work that an earlier attempt did."""
        self._done += size

    def status(self, documents: int, count: int) -> Status:
        self._before = self._before or (documents, count)
        elapsed = max(time.monotonic() - self._started, 1e-9)
        done = min(self._done, self._total)
        return Status(
            phase="tokenising",
            done_bytes=done,
            total_bytes=self._total,
            documents=documents,
            tokens=count,
            documents_per_s=(documents - self._before[0]) / elapsed,
            tokens_per_s=(count - self._before[1]) / elapsed,
            eta_s=(self._total - done) * elapsed / self._done_here if self._done_here else None,
        )


def _limited(found: Iterator[units.Unit], limit_bytes: int) -> Iterator[units.Unit]:
    """Units until they cover `limit_bytes`; 0 means all of them."""
    covered = 0
    for unit in found:
        if limit_bytes and covered + unit.size_bytes > limit_bytes:
            kept = unit.cut(limit_bytes - covered)
            if kept is not None or not covered:
                yield kept or unit
            return
        yield unit
        covered += unit.size_bytes


def _drop_spools(unit: units.Unit) -> None:
    for part in unit.parts:
        if part.is_spool:
            Path(part.file.path).unlink(missing_ok=True)


def _available_mib() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) >> 10
    except OSError:
        return WORKER_MEMORY_MIB
    return WORKER_MEMORY_MIB
