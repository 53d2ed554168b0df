"""The run directory: the only output and the only truth. Documented in docs/run-directory.md.

Names and reads what is in it, and locks it. Who writes what: the supervisor writes `state.json`,
`distributed_config.env` and the attempt directories' `command.sh`; workers write
`metrics.jsonl` and their own files; both append to `events.jsonl`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine import patience, secrets
from engine.errors import NotFoundError, RunError, UnreadableError
from engine.monitor.record import parse_record
from engine.paths import expanded, file_text, open_file
from engine.plan.plan import Plan
from engine.run.state import State

ENDING_S = 10.0
"""How long a supervisor may take to leave after its last word."""
_ATTEMPT = re.compile(r"(\d+)-[a-z]+")
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

    def newest_attempt(self) -> tuple[int, Path | None]:
        """Number and directory of the newest attempt, also of one that the state does not know; (0, None) before."""
        found = [
            (int(match[1]), path) for path in self.attempts.glob("*-*") if (match := _ATTEMPT.fullmatch(path.name))
        ]
        return max(found, default=(0, None))

    def read_plan(self) -> Plan:
        """Raises RunError for a missing, newer or damaged plan."""
        return Plan.from_json(self._read(self.plan))

    def read_state(self) -> State:
        """The state as its supervisor last wrote it. Raises RunError as `State.from_json` does, and UnreadableError."""
        return State.from_json(self._read(self.state))

    def last_checkpoint(self) -> int | None:
        """Iteration of the newest complete checkpoint of the training, or None.

        Megatron writes the tracker file last, after every rank has finished.
        """
        tracker = self.checkpoints / "latest_checkpointed_iteration.txt"
        try:
            iteration = int(file_text(tracker))
            is_there = (self.checkpoints / f"iter_{iteration:07d}" / ".metadata").exists()
        except (OSError, ValueError):
            return None
        return iteration if is_there else None

    def append_event(self, kind: str, message: str, **facts: Any) -> None:
        """Add one line to `events.jsonl`; a line is written in one piece. Raises OSError."""
        record = {"t": time.time(), "kind": kind, "message": message, **facts}
        append_line(self.events, record)

    def _read(self, path: Path) -> str:
        try:
            return file_text(path)
        except FileNotFoundError:
            raise RunError(f"{self.path} is not a run: it has no {path.name}", "list runs with: gptoss runs") from None
        except UnicodeDecodeError as error:
            raise RunError(f"{path.name} is damaged: {error}", "repair it with: gptoss runs --repair") from error
        except OSError as error:
            raise UnreadableError.of(path, error) from error


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Append `record` as one JSON line, in one write, so that writers do not mix. Raises OSError."""
    line = (secrets.redact(json.dumps(record)) + "\n").encode()
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
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)  # logs and env files may hold what others must not read
            (path / "attempts").mkdir()
            return RunDirectory(path)
    except OSError as error:
        raise RunError(
            f"{path} cannot be made: {error.strerror}", "choose another place with --set output.directory=DIR"
        ) from error
    if not _is_run(path):
        raise RunError(
            f"{path} is there already and is no run: somebody's, or a start that was cut short",
            "give another name, or remove what is left of a start with: gptoss runs --repair",
        )
    raise RunError(
        f"the run {name!r} exists already: {path}",
        f"give another name, or continue it: gptoss run --resume {name}",
    )


def check_name(name: str) -> str:
    """`name` when it can name a run. Raises RunError: it becomes part of paths and commands."""
    if not _NAME.fullmatch(name):
        raise RunError(f"{name!r} cannot name a run", "use up to 80 letters, digits, dots, dashes and underscores")
    return name


def find(root: Path, reference: str) -> RunDirectory:
    """The run called `reference` in `root`, or at the path `reference`. Raises NotFoundError."""
    path = expanded(reference)
    for candidate in (root / reference, path):
        if _is_run(candidate):
            return RunDirectory(_resolved(candidate))
    raise NotFoundError(f"there is no run {reference!r} in {root}", "list runs with: gptoss runs")


def list_runs(root: Path) -> list[RunDirectory]:
    """Every run in `root` that answers, the one that was made last first. Raises as `look_around`."""
    return look_around(root)[0]


def look_around(root: Path) -> tuple[list[RunDirectory], dict[str, str]]:
    """Every run in `root`, the one that was made last first, and by name why others cannot be looked at.

    Raises RunError when `root` itself cannot.
    """
    runs: list[tuple[float, RunDirectory]] = []
    problems: dict[str, str] = {}
    try:
        [(_, entries)] = patience.each([root], lambda root: list(root.iterdir()))
        if isinstance(entries, patience.NoAnswer):
            raise entries
    except (FileNotFoundError, NotADirectoryError):
        return [], {}
    except OSError as error:
        raise RunError(f"{root} cannot be read: {error.strerror}", "is the share that it is on down?") from error
    for entry, found in patience.each(entries, _look_at):
        if isinstance(found, tuple):
            runs.append(found)
        elif found:
            problems[entry.name] = str(found.strerror) if isinstance(found, patience.NoAnswer) else found
    runs.sort(key=lambda found: found[0], reverse=True)
    return [run for _, run in runs], problems


def _look_at(entry: Path) -> tuple[float, RunDirectory] | str | None:
    """When a run was made, and the run; or why it cannot be looked at; None for what is no run."""
    if _is_run(entry):
        run = RunDirectory(_resolved(entry))
        return _created(run), run
    if entry.is_symlink() and not os.path.exists(entry):
        return f"it is in {os.readlink(entry)}, which is not there"
    return None


def _is_run(entry: Path) -> bool:
    """True for a directory with the record of a run, also one whose share does not answer."""
    try:
        return any((entry / name).exists() for name in ("state.json", "plan.json"))
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG


def _resolved(entry: Path) -> Path:
    try:
        return entry.resolve()
    except OSError:
        return entry.absolute()


def _created(run: RunDirectory) -> float:
    """When the run was made: its supervisor goes on writing the state, so that the file's own time says nothing."""
    try:
        return run.read_state().created
    except RunError:
        with suppress(OSError):
            return run.plan.stat().st_mtime
        return 0.0


def read_records(path: Path, holding: bytes = b"") -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file; lines that are no JSON object are left out, and those without `holding`.

    A killed writer leaves a half line; losing it is harmless. A file that cannot be read has none.
    """
    with suppress(UnreadableError):
        yield from records(path, holding)


def records(path: Path, holding: bytes = b"") -> Iterator[dict[str, Any]]:
    """As `read_records`. Raises UnreadableError for a file that is there and cannot be read."""
    try:
        with open_file(path) as file:
            for line in file:
                record = parse_record(line) if holding in line else None
                if record is not None:
                    yield record
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UnreadableError.of(path, error) from error


@contextmanager
def held(run: RunDirectory, what: str, wait_s: float = ENDING_S) -> Iterator[int]:
    """Hold the run while it is changed; yields the descriptor of the lock. Raises as `hold` does."""
    descriptor = hold(run, what, wait_s)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def hold(run: RunDirectory, what: str, wait_s: float = ENDING_S) -> int:
    """Hold the run until the descriptor that is returned is closed, here and where it was handed on.

    Waits for a supervisor that is about to end, or for somebody who changes the run, but not for a run at work.
    `what` says who holds it. Raises RunError when somebody else does, OSError when the lock cannot be made.
    """
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait_s
    try:
        while not _try_lock(run, descriptor):
            if time.monotonic() > deadline or _is_at_work(run):
                hint = f"watch it with: gptoss attach {run.name}"
                raise RunError(f"{run.name} has a supervisor already: {_holder(descriptor)}", hint)
            time.sleep(0.1)
    except BaseException:
        os.close(descriptor)
        raise
    note_holder(descriptor, what)
    return descriptor


def note_holder(descriptor: int, what: str) -> None:
    """Write who holds the lock into it, for those who would like to."""
    text = f"{what}, process {os.getpid()} on {platform.node()}\n".encode()
    with suppress(OSError):  # a full disk; the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)


def _holder(descriptor: int) -> str:
    try:
        text = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return text or "it is held by another process"


def _try_lock(run: RunDirectory, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise RunError(
                f"the file system of {run.path} has no locks: {error.strerror}",
                "mount it with them (Lustre: flock), or choose another place with --set output.directory=DIR",
            ) from error
        raise
    return True


def _is_at_work(run: RunDirectory) -> bool:
    try:
        return run.read_state().observed().status.is_live
    except RunError:
        return False
