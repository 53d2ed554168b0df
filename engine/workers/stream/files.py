"""Write many large files at once: each from start to end by one thread, with its SHA-256.

A directory in the making has another name than the finished one. Every finished file is noted in
a journal, so that an interrupted conversion goes on where it was and a changed one starts anew.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, StepFailed
from engine.version import __version__
from engine.workers import files as directories
from engine.workers.stream.values import U8, Array

JOURNAL, LOCK = "journal.jsonl", "lock"
_POLL_S = 0.25
_SETTLED_S = 1.0
_DISK_THREADS = 2
_HINTS = (
    ((errno.ENOSPC, errno.EDQUOT), "free some disk space there, then start it again: it goes on where it was"),
    ((errno.EACCES, errno.EPERM, errno.EROFS), "give a directory that you may write to"),
    ((errno.EFBIG,), "raise the limit of the size of files (ulimit -f), or give another disk"),
    ((errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT), "give another directory"),
)
"""What helps, by the reason why a file cannot be written."""

type OnProgress = Callable[[str, int, int], None]
"""Gets a sentence, the bytes written so far and their final number."""


class Cancelled(Exception):
    """Another file failed, or a stop was asked for; this one is given up."""


class Meter:
    """How much all threads have written together."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._kept_bytes = 0
        self._label = ""
        self._started = time.monotonic()

    def add(self, count: int, label: str) -> None:
        if self.cancelled.is_set():
            raise Cancelled
        with self._lock:
            self._done_bytes += count
            self._label = label

    def keep(self, count: int) -> None:
        """Count bytes that an earlier, interrupted conversion wrote."""
        self._done_bytes += count
        self._kept_bytes += count

    @property
    def done_bytes(self) -> int:
        return min(self._done_bytes, self.total_bytes)

    def sentence(self) -> str:
        """Where it is, how fast, and how long it will still take."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        speed = (self._done_bytes - self._kept_bytes) / seconds
        digits = 2 if self.total_bytes >= 1e8 else 4
        done, total = (f"{count / 1e9:.{digits}f}" for count in (self.done_bytes, self.total_bytes))
        text = f"{done} of {total} GB, {speed / 1e9:.2f} GB/s"
        # The first moments say nothing about the rest.
        if speed and seconds >= _SETTLED_S and self.done_bytes < self.total_bytes:
            left = (self.total_bytes - self.done_bytes) / speed
            text += f", {left:.0f} s left" if left < 120 else f", {left / 60:.0f} min left"
        return f"{text}  {self._label}".rstrip()


class OutputFile:
    """One file in the making."""

    def __init__(self, path: Path, meter: Meter) -> None:
        self._file = path.open("wb", buffering=0)
        self._meter = meter
        self._hash = hashlib.sha256()
        self.position = 0

    def put(self, data: bytes | Array, label: str = "") -> None:
        """Append bytes, or a contiguous array's values. Raises OSError; Cancelled when it is to be given up."""
        view = memoryview(data if isinstance(data, bytes) else data.reshape(-1).view(U8))
        self._hash.update(view)
        done = 0
        while done < len(view):
            done += self._file.write(view[done:])
        self.position += len(view)
        self._meter.add(len(view), label)

    def finish(self) -> str:
        """Bring the file to the disk, close it, and return its SHA-256."""
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hash.hexdigest()

    def abandon(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One file to write: `write` fills it and returns what the journal shall remember of it."""

    name: str
    size_bytes: int
    """About; for the progress."""
    write: Callable[[OutputFile], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One finished file."""

    name: str
    size_bytes: int
    sha256: str
    facts: Any


@contextmanager
def making(final: Path, identity: Mapping[str, Any]) -> Iterator[Path]:
    """The directory in which `final` is made; what a conversion with the same identity left there stays.

    Raises CheckpointError when another process makes the same directory, StepFailed when writing fails.
    """
    partial = final.with_name(f".{final.name}.partial")
    with _write_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
        lock_file = (partial / LOCK).open("w")
    with _write_errors(partial), lock_file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"{final} is being written by another process", "wait for it, or give another directory"
            ) from None
        first = json.dumps({**identity, "gptoss": __version__}, sort_keys=True) + "\n"
        journal = partial / JOURNAL
        if not journal.exists() or _first_line(journal) != first:
            _empty(partial)
            journal.write_text(first, encoding="utf-8")
        try:
            yield partial
        except BaseException as error:
            # A damaged source stays damaged, and without a finished file there is nothing to go on with.
            is_useless = journal.exists() and len(journal.read_bytes().splitlines()) <= 1
            if isinstance(error, CheckpointError) or is_useless:
                shutil.rmtree(partial)
            raise


def publish(partial: Path, final: Path) -> None:
    """Give the finished directory its name; what had it before goes only then. Raises OSError."""
    (partial / JOURNAL).unlink()
    (partial / LOCK).unlink()
    directories.publish(partial, final)


def write_all(
    units: Sequence[Unit], directory: Path, journal: Path, threads: int, on_progress: OnProgress | None
) -> list[Written]:
    """Write every unit that the journal does not know yet, and return all in the order of `units`.

    Raises the first error of any thread, when the others have stopped.
    """
    meter = Meter(sum(unit.size_bytes for unit in units))
    known = _known(journal, directory)
    left = [unit for unit in units if unit.name not in known]
    for unit in units:
        if unit.name in known:
            meter.keep(unit.size_bytes)
    # The disk gets threads of its own: one that waits for it would leave a core idle.
    with ThreadPoolExecutor(_DISK_THREADS) as disk, ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(_write, unit, directory, journal, meter, disk) for unit in left]
        try:
            _await(futures, meter, on_progress)
        except BaseException:
            meter.cancelled.set()
            for future in futures:
                future.cancel()
            raise
        known |= {one.name: one for one in (future.result().result() for future in futures)}
    if on_progress:
        on_progress(meter.sentence(), meter.total_bytes, meter.total_bytes)
    return [known[unit.name] for unit in units]


def _write(unit: Unit, directory: Path, journal: Path, meter: Meter, disk: ThreadPoolExecutor) -> Future[Written]:
    """Fill one file; the future is done when it is on the disk and noted."""
    if meter.cancelled.is_set():
        raise Cancelled
    with _write_errors(directory / unit.name):
        file = OutputFile(directory / unit.name, meter)
        try:
            facts = unit.write(file)
        except BaseException:
            file.abandon()
            raise
    return disk.submit(_settle, unit.name, file, facts, directory, journal)


def _settle(name: str, file: OutputFile, facts: Any, directory: Path, journal: Path) -> Written:
    with _write_errors(directory / name):
        written = Written(name=name, size_bytes=file.position, sha256=file.finish(), facts=facts)
        _note(journal, written)
    return written


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = next((hint for numbers, hint in _HINTS if error.errno in numbers), "check the disk, or give another one")
        raise StepFailed(f"{error.filename or path} cannot be written: {error.strerror or error}", hint) from error


def _await(futures: Sequence[Future[Future[Written]]], meter: Meter, on_progress: OnProgress | None) -> None:
    """Wait until every file is filled and on the disk. Raises the first error."""
    pending: set[Future[Any]] = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_S, return_when=FIRST_EXCEPTION)
        failures = [error for future in done if (error := future.exception())]
        # A thread that was told to stop is not the reason.
        for error in sorted(failures, key=lambda error: isinstance(error, Cancelled)):
            raise error
        pending |= {result for future in done if isinstance(result := future.result(), Future)}
        if on_progress:
            on_progress(meter.sentence(), meter.done_bytes, meter.total_bytes)


def _note(journal: Path, written: Written) -> None:
    record = {
        "name": written.name,
        "bytes": written.size_bytes,
        "sha256": written.sha256,
        "facts": written.facts,
    }
    line = (json.dumps(record) + "\n").encode()
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _known(journal: Path, directory: Path) -> dict[str, Written]:
    """The files that are noted as finished and still have their size."""
    found: dict[str, Written] = {}
    for line in journal.read_bytes().splitlines()[1:]:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a killed process; its file is written again
        written = Written(
            name=record["name"], size_bytes=record["bytes"], sha256=record["sha256"], facts=record["facts"]
        )
        path = directory / written.name
        if path.is_file() and path.stat().st_size == written.size_bytes:
            found[written.name] = written
    return found


def _first_line(journal: Path) -> str:
    with journal.open(encoding="utf-8", errors="replace") as file:
        return file.readline()


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
