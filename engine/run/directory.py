"""The run directory: the only output and the only truth. Documented in docs/run-directory.md.

Names and reads what is in it. Who writes what: the supervisor writes `state.json`,
`distributed_config.env` and the attempt directories' `command.sh`; workers write
`metrics.jsonl` and their own files; both append to `events.jsonl`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.errors import NotFoundError, RunError
from engine.monitor.record import parse_record
from engine.plan.plan import Plan
from engine.run.state import State

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class RunDirectory:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path = path.absolute()
        self.settings = path / "settings.toml"
        self.plan = path / "plan.json"
        self.state = path / "state.json"
        self.environment = path / "distributed_config.env"
        self.command = path / "command.sh"
        """Every step's command in order, for people."""
        self.metrics = path / "metrics.jsonl"
        self.events = path / "events.jsonl"
        self.supervisor_log = path / "supervisor.log"
        self.lock = path / "supervisor.lock"
        self.reserve = path / ".reserve"
        """Room that the supervisor gives up to write how the run ended."""
        self.attempts = path / "attempts"
        self.model = path / "model"
        """The Hugging Face checkpoint that the prepare step made (tiny model only)."""
        self.data = path / "data"
        """`train.{bin,idx}`, `validation.{bin,idx}`, `tokenizer/` and `manifest.json`."""
        self.converted = path / "converted"
        """The Megatron checkpoint that the convert step made."""
        self.checkpoints = path / "checkpoints"
        """What training saves."""
        self.export = path / "export"
        """The trained model as Hugging Face safetensors."""
        self.tensorboard = path / "tensorboard"

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.name

    def attempt(self, number: int, step: str) -> Path:
        """The directory of one attempt: rank logs, command, reports."""
        return self.attempts / f"{number:02d}-{step}"

    def read_plan(self) -> Plan:
        """Raises RunError for a missing, newer or damaged plan."""
        return Plan.from_json(self._read(self.plan))

    def read_state(self) -> State:
        """The state as its supervisor last wrote it. Raises RunError as `State.from_json` does."""
        return State.from_json(self._read(self.state))

    def last_checkpoint(self) -> int | None:
        """Iteration of the newest complete checkpoint of the training, or None.

        Megatron writes the tracker file last, after every rank has finished.
        """
        tracker = self.checkpoints / "latest_checkpointed_iteration.txt"
        try:
            iteration = int(tracker.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        is_there = (self.checkpoints / f"iter_{iteration:07d}" / ".metadata").exists()
        return iteration if is_there else None

    def append_event(self, kind: str, message: str, **facts: Any) -> None:
        """Add one line to `events.jsonl`; a line is written in one piece. Raises OSError."""
        record = {"t": time.time(), "kind": kind, "message": message, **facts}
        append_line(self.events, record)

    def _read(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RunError(f"{self.path} is not a run: it has no {path.name}", "list runs with: gptoss runs") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{path} cannot be read: {error}", "check its permissions") from error


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append `record` as one JSON line, in one write, so that writers do not mix. Raises OSError."""
    line = (json.dumps(record) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def end_half_line(path: Path) -> None:
    """End a line that a killed writer left half, so that the next record is not lost with it. Raises OSError."""
    try:
        with path.open("rb+") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                file.write(b"\n")
    except FileNotFoundError:
        return


def create(root: Path, name: str) -> RunDirectory:
    """Make an empty run directory. Raises RunError when it exists or cannot be made."""
    check_name(name)
    path = root / name
    try:
        root.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)  # logs and env files may hold what others must not read
    except FileExistsError:
        raise RunError(
            f"the run {name!r} exists already: {path}",
            f"give another name, or continue it: gptoss run --resume {name}",
        ) from None
    except OSError as error:
        raise RunError(
            f"{path} cannot be made: {error.strerror}", "choose another place with --set output.directory=DIR"
        ) from error
    run = RunDirectory(path)
    run.attempts.mkdir()
    return run


def check_name(name: str) -> str:
    """`name` when it can name a run. Raises RunError: it becomes part of paths and commands."""
    if not _NAME.fullmatch(name):
        raise RunError(f"{name!r} cannot name a run", "use up to 80 letters, digits, dots, dashes and underscores")
    return name


def find(root: Path, reference: str) -> RunDirectory:
    """The run called `reference` in `root`, or at the path `reference`. Raises NotFoundError."""
    path = Path(reference).expanduser()
    for candidate in (root / reference, path):
        if (candidate / "state.json").exists():
            return RunDirectory(candidate.resolve())
    raise NotFoundError(f"there is no run {reference!r} in {root}", "list runs with: gptoss runs")


def list_runs(root: Path) -> list[RunDirectory]:
    """Every run in `root`, newest first."""
    try:
        found = [entry for entry in root.iterdir() if (entry / "state.json").exists()]
    except OSError:
        return []
    found.sort(key=lambda entry: (entry / "state.json").stat().st_mtime, reverse=True)
    return [RunDirectory(entry.resolve()) for entry in found]


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file; lines that are no JSON object are left out.

    A killed writer leaves a half line; losing it is harmless.
    """
    try:
        with path.open("rb") as file:
            for line in file:
                record = parse_record(line)
                if record is not None:
                    yield record
    except OSError:
        return


def hold(run: RunDirectory) -> int:
    """Hold the run for this process's life. Raises RunError when another supervisor does."""
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise RunError(f"{run.name} has a supervisor already", f"watch it with: gptoss attach {run.name}") from None
    return descriptor
