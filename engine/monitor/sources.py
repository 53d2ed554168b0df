"""Where records come from: a log, several logs, a directory, an event directory, standard input.

Every source is polled and gives records in the order in which they were written. What is in a
path is told by looking, not by asking the person.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from engine.errors import NotFoundError, SettingsError
from engine.monitor.metrics import LogReader, Record
from engine.monitor.record import parse_record
from engine.monitor.tail import CHUNK_BYTES, LONGEST_LINE_BYTES, Tail
from engine.monitor.tensorboard import EventFile, find_event_files
from engine.monitor.wandb_file import WandbFile, find_wandb_files
from engine.paths import expanded

POLL_S = 0.2
RESCAN_S = 2.0
"""How often a directory is looked at for new files."""

LAST_LINES = 5000

_LOG_PATTERNS = ("*.log", "*.out", "*.err", "*.txt", "*/*.log", "*/stdout*", "*/stderr*", "*/*/stdout.log", "*/*/*.log")


class Source(Protocol):
    """Something that gives records while a job runs."""

    def read(self) -> list[Record]:
        """What is new since the last call; in pieces of about 1 MiB."""

    @property
    def is_behind(self) -> bool:
        """True when more can be read at once."""

    @property
    def is_over(self) -> bool:
        """True when nothing can follow any more (a closed pipe)."""


class LogFiles:
    """One or several growing logs; records of several carry the name of theirs as `source`."""

    is_over = False

    def __init__(self, paths: list[Path]) -> None:
        self._logs: dict[Path, tuple[Tail, LogReader]] = {}
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> None:
        """Follow one more file, from its start."""
        self._logs.setdefault(path, (Tail(path), LogReader()))

    @property
    def options(self) -> dict[str, int]:
        """Options of the job that a log showed."""
        return {name: value for _, reader in self._logs.values() for name, value in reader.options.items()}

    @property
    def is_behind(self) -> bool:
        return any(tail.is_behind for tail, _ in self._logs.values())

    def read(self) -> list[Record]:
        now = time.time()
        records: list[Record] = []
        several = len(self._logs) > 1
        for path, (tail, reader) in self._logs.items():
            for line in tail.read():
                for record in reader.read(line.decode("utf-8", "replace"), now):
                    records.append({**record, "source": path.name} if several else record)
            if several:
                tail.close()  # a thousand ranks would be a thousand open files
        return records


class JsonFiles:
    """`metrics.jsonl`, `events.jsonl`: records already; of one poll sorted by time."""

    is_over = False

    def __init__(self, paths: list[Path]) -> None:
        self._tails = [Tail(path) for path in paths]

    @property
    def is_behind(self) -> bool:
        return any(tail.is_behind for tail in self._tails)

    def read(self) -> list[Record]:
        records = [record for tail in self._tails for line in tail.read() if (record := parse_json(line)) is not None]
        if len(self._tails) > 1:
            records.sort(key=lambda record: record["t"])  # stable: each file keeps its own order
        return records


class EventDirectory:
    """The event files of TensorBoard, or the offline files of W&B, in a directory, new ones included."""

    is_over = False

    def __init__(
        self,
        directory: Path,
        find: Callable[[Path], list[Path]] = find_event_files,
        open_file: Callable[[Path], EventFile | WandbFile] = EventFile,
    ) -> None:
        self._directory, self._find, self._open = directory, find, open_file
        self._files: dict[Path, EventFile | WandbFile] = {}
        self._next_scan = 0.0

    @property
    def is_behind(self) -> bool:
        return any(file.is_behind for file in self._files.values())

    def read(self) -> list[Record]:
        if time.monotonic() >= self._next_scan:
            self._next_scan = time.monotonic() + RESCAN_S
            for path in self._find(self._directory):
                if path not in self._files:
                    self._files[path] = self._open(path)
        return [record for file in self._files.values() for record in file.read()]


class LogDirectory:
    """The logs of all ranks in a directory; files that appear later are followed too."""

    is_over = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._logs = LogFiles([])
        self._next_scan = 0.0

    @property
    def options(self) -> dict[str, int]:
        return self._logs.options

    @property
    def is_behind(self) -> bool:
        return self._logs.is_behind

    def read(self) -> list[Record]:
        if time.monotonic() >= self._next_scan:
            self._next_scan = time.monotonic() + RESCAN_S
            for path in find_logs(self._directory):
                self._logs.add(path)
        return self._logs.read()


class Pipe:
    """A log on a file descriptor, standard input for one."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._reader = LogReader()
        self._half = b""
        self.is_over = False
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        """The end of what came: a pipe cannot be read twice."""

    @property
    def options(self) -> dict[str, int]:
        return self._reader.options

    @property
    def is_behind(self) -> bool:
        return not self.is_over and bool(select.select([self._descriptor], [], [], 0)[0])

    def read(self) -> list[Record]:
        if not self.is_behind:
            return []
        data = os.read(self._descriptor, CHUNK_BYTES)
        self.is_over = not data
        # The end of a pipe ends its last line; a file's last line may still grow.
        lines = (self._half + (data or b"\n")).split(b"\n")
        self._half = lines.pop()[-LONGEST_LINE_BYTES:]
        now = time.time()
        texts = [line.decode("utf-8", "replace") for line in lines]
        self.last_lines.extend(texts)
        return [record for text in texts for record in self._reader.read(text, now)]


def open_source(places: list[str], stdin: int = 0) -> Source:
    """The source that `places` name: paths, or `-` for standard input.

    Raises NotFoundError for a missing path and SettingsError for one that holds nothing to read.
    """
    if places == ["-"]:
        return Pipe(stdin)
    paths = [expanded(place) for place in places]
    for path in paths:
        if not path.exists():
            raise NotFoundError(f"there is no {path}", "give a log file, a directory of logs, or - for standard input")
    if len(paths) == 1 and paths[0].is_dir():
        return _open_directory(paths[0])
    for path in paths:
        if path.is_dir():
            raise SettingsError(f"{path} is a directory among files", "give one directory, or only files")
        if "\0" in str(path) or not os.access(path, os.R_OK):
            raise SettingsError(f"{path} cannot be read", "check its permissions")
    if all(path.suffix == ".jsonl" for path in paths):
        return JsonFiles(paths)
    return _open_events(paths[0]) if len(paths) == 1 and is_event_file(paths[0]) else LogFiles(paths)


def follow(source: Source, *, wait: Callable[[float], bool]) -> Iterator[list[Record]]:
    """Batches of new records, an empty one when nothing came; ends when `wait` says so or the source is over.

    `wait(seconds)` pauses and returns False to stop: at the end of what is there, for example.
    """
    while True:
        batch = source.read()
        yield batch
        if source.is_over or not (source.is_behind or wait(POLL_S)):
            return


def find_logs(directory: Path) -> list[Path]:
    """What looks like a rank's log in `directory`, up to three levels down (torchrun --log-dir), by name."""
    found = {path for pattern in _LOG_PATTERNS for path in directory.glob(pattern) if path.is_file()}
    return sorted(found)


def parse_json(line: bytes) -> Record | None:
    """A metric or event record, or None for a line that is neither."""
    record = parse_record(line)
    return record if record and "t" in record else None


def is_event_file(path: Path) -> bool:
    """True for the files of TensorBoard and W&B, which are no text."""
    return ".tfevents." in path.name or path.suffix == ".wandb"


def _open_events(path: Path) -> Source:
    if path.suffix == ".wandb":
        return EventDirectory(path, lambda only: [only], WandbFile)
    return EventDirectory(path.parent)


def _open_directory(directory: Path) -> Source:
    records = [path for name in ("events.jsonl", "metrics.jsonl") if (path := directory / name).exists()]
    if records:
        return JsonFiles(records)
    if find_event_files(directory):
        return EventDirectory(directory)
    # Before logs: the directory of a W&B run holds a debug.log.
    if find_wandb_files(directory):
        return EventDirectory(directory, find_wandb_files, WandbFile)
    if find_logs(directory):
        return LogDirectory(directory)
    raise SettingsError(
        f"{directory} holds no log, no event file and no run",
        "give the directory with the rank logs or with events.out.tfevents.*",
    )
