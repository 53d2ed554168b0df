"""Which trainings are in a place: one job for each run, event directory, W&B file or group of logs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import NotFoundError, SettingsError
from engine.monitor.notify import Notifier
from engine.monitor.sources import EventDirectory, JsonFiles, LogFiles, Source, find_logs, is_event_file
from engine.monitor.wandb_file import WandbFile
from engine.paths import expanded

DEPTH = 3
"""Directories below the named one that are looked into."""
MOST_DIRECTORIES = 2000
"""A larger tree is looked at in part: somebody named the wrong place."""
_PEEK_BYTES = 1 << 16
_SHOWS_ITERATIONS = re.compile(rb"iteration\s+\d+\s*/\s*\d+ *\||reduced_train_loss")
# What tells one rank's log of a job from another's: `rank-3.log`, `node_0/1/stdout.log`, `12345_3_log.out`.
_RANK = re.compile(r"(?<![a-z])(rank|node|worker|host|task|attempt|local_rank)[-_.]?\d+", re.IGNORECASE)
_TASK = re.compile(r"^(\d+)_\d+(?=[_.])")
_STREAM = re.compile(r"(?<![a-z])(stdout|stderr|log)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training that somebody else may have started."""

    name: str
    """Its place, counted from the one that was named; unique among the jobs of a place."""
    kind: str
    """What it is read from: records, TensorBoard, W&B or log."""
    files: tuple[Path, ...]
    """What its metrics are read from."""
    logs: tuple[Path, ...]
    """Its text, a log for each rank."""
    changed: float
    """When any of these was last written, unix seconds."""

    def open(self) -> Source:
        """Its records from the beginning."""
        if self.kind == "records":
            return JsonFiles(list(self.files))
        if self.kind == "W&B":
            return EventDirectory(self.files[0], lambda only: [only], WandbFile)
        if self.kind == "TensorBoard":
            return EventDirectory(self.files[0].parent, _event_files)
        return LogFiles(list(self.files))


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a screen is to follow."""

    places: list[str]
    """Files or one directory, as a person named them."""
    jobs: list[Job]
    """The trainings there, the newest first; at least one."""
    notifier: Callable[[Callable[[str], None]], Notifier] | None = None
    """Makes what sends alerts on, given what says a failure to do so."""


def find_jobs(places: list[str]) -> list[Job]:
    """The trainings in `places`, which are files or one directory, the newest first.

    Raises NotFoundError for a missing path and SettingsError for one that holds nothing to read.
    """
    paths = [expanded(place) for place in places]
    for path in paths:
        if "\0" in str(path) or not path.exists():
            raise NotFoundError(f"there is no {str(path)!r}", "give a log file, or a directory of logs or event files")
        if not os.access(path, os.R_OK):
            raise SettingsError(f"{path} cannot be read", "check its permissions")
    if len(paths) == 1 and paths[0].is_dir():
        found = list(_jobs_in(paths[0]))
    elif any(path.is_dir() for path in paths):
        raise SettingsError(f"{' '.join(places)}: a directory among files", "give one directory, or only files")
    else:
        found = [_job_of(paths)]
    if not found:
        raise SettingsError(
            f"{paths[0]} holds no log, no event file and no run",
            "give the directory with the rank logs or with events.out.tfevents.*",
        )
    return sorted(found, key=lambda job: -job.changed)


def _job_of(files: list[Path]) -> Job:
    """Files that a person put together are one training."""
    first = files[0]
    name = first.name if len(files) == 1 else f"{first.name} and {len(files) - 1} more"
    if all(path.suffix == ".jsonl" for path in files):
        return _job(name, "records", files, [])
    if is_event_file(first):
        if first.suffix == ".wandb":
            return _job(name, "W&B", [first], [])
        return _job(name, "TensorBoard", _event_files(first.parent), [])
    return _job(name, "log", files, files)


def _jobs_in(place: Path) -> Iterator[Job]:
    """What records and event files tell; logs only where there are none: they would tell the same again."""
    told: list[tuple[Path, str, list[Path]]] = []
    for directory, names in _directories(place):
        records = [directory / name for name in ("events.jsonl", "metrics.jsonl") if name in names]
        if "metrics.jsonl" in names:
            told.append((directory, "records", records))
        elif any(".tfevents." in name for name in names):
            told.append((directory, "TensorBoard", _event_files(directory)))
        for name in sorted(names):
            if name.endswith(".wandb"):
                told.append((directory / name, "W&B", [directory / name]))
    if not told:
        yield from _log_jobs(place)
    for where, kind, files in told:
        nearest = where.parent if kind == "W&B" else where
        logs = find_logs(nearest) or (find_logs(place) if len(told) == 1 else [])
        yield _job(_name(where, place), kind, files, logs)


def _log_jobs(place: Path) -> Iterator[Job]:
    groups: dict[str, list[Path]] = {}
    for path in find_logs(place):
        groups.setdefault(_group(path.relative_to(place)), []).append(path)
    telling = {key: files for key, files in groups.items() if any(map(_shows_iterations, files))}
    for files in (telling or groups).values():
        yield _job(_common_name(files, place), "log", files, files)


def _job(name: str, kind: str, files: Iterable[Path], logs: Iterable[Path]) -> Job:
    files, logs = tuple(files), tuple(logs)
    changed = max((_changed(path) for path in {*files, *logs}), default=0.0)
    return Job(name=name, kind=kind, files=files, logs=logs, changed=changed)


def _directories(place: Path) -> Iterator[tuple[Path, set[str]]]:
    """`place` and what is below it, with the names of their files; nothing below a run."""
    waiting = [(place, 0)]
    for seen in range(MOST_DIRECTORIES):
        if seen >= len(waiting):
            return
        directory, depth = waiting[seen]
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError:
            continue
        names = {entry.name for entry in entries if entry.is_file()}
        yield directory, names
        if depth < DEPTH and "metrics.jsonl" not in names:
            waiting += [(Path(entry), depth + 1) for entry in entries if entry.is_dir(follow_symlinks=False)]


def _event_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("events.out.tfevents.*"), key=lambda path: (path.name.split(".")[3:4], path))


def _group(path: Path) -> str:
    """The same for the logs of all ranks of a job."""
    parts = list(path.with_suffix("").parts)
    # torchrun --log-dir: attempt_0/3/stdout.log
    parts[:-1] = ["*" if part.isdecimal() else _RANK.sub("*", part) for part in parts[:-1]]
    parts[-1] = _STREAM.sub("*", _RANK.sub("*", _TASK.sub(r"\1_*", parts[-1])))
    return "/".join(parts)


def _common_name(files: list[Path], place: Path) -> str:
    if len(files) == 1:
        return str(files[0].relative_to(place))
    common = Path(os.path.commonpath(files))
    return f"{_name(common, place)} ({files[0].name} and {len(files) - 1} more)"


def _name(path: Path, place: Path) -> str:
    return path.name if path == place else str(path.relative_to(place))


def _shows_iterations(path: Path) -> bool:
    """Looks at both ends of the file only."""
    try:
        with path.open("rb") as file:
            if _SHOWS_ITERATIONS.search(file.read(_PEEK_BYTES)):
                return True
            file.seek(max(0, file.seek(0, 2) - _PEEK_BYTES))
            return _SHOWS_ITERATIONS.search(file.read()) is not None
    except OSError:
        return False


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
