"""A run directory as messages: the one place where the screens read a run.

Polls in a thread. Polling works over NFS and on a copied directory, and one poll is a few
`stat` calls. What was read is handed over in batches, so that a fast run does not flood the screen.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.message import Message
from textual.message_pump import MessagePump
from textual.worker import get_current_worker

from engine import patience
from engine.errors import EngineError
from engine.monitor import labels
from engine.monitor.labels import Labels
from engine.monitor.record import parse_record
from engine.monitor.tail import Tail
from engine.run import directory
from engine.run.directory import RunDirectory
from engine.run.state import State
from gptoss_tui import words
from gptoss_tui.history import History
from gptoss_tui.log_lines import Level, export
from gptoss_tui.log_merged import export_merged

if TYPE_CHECKING:
    from engine.plan.plan import Plan
    from engine.settings import Settings

POLL_S = 0.2
BATCH_S = 0.3
"""Least time between two batches, so every second poll at most: a value is on the screen within half a second."""
STATE_S = 1.0
"""How often the supervisor is looked for, which an unchanged file does not tell."""

LONG_BYTES = 4 << 20
"""From here on a part of the metrics is shown before all of them are read."""
SAMPLES = 400
PREVIEW_S = 1.0
_LAST_BYTES = 4096

type Record = dict[str, Any]


@dataclass(slots=True)
class Batch:
    """What is new in a run directory."""

    metrics: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    state: State | None = None
    problem: str = ""
    """Why the state cannot be read, if so."""
    is_history: bool = False
    """True while more is waiting to be read at once."""
    history: History | None = None
    """Everything up to here, in place of what was told before."""
    source: str = ""
    """Which training this is of, where a screen may turn to another one."""
    restarted: bool = False
    """True when the metrics were replaced: what came before counts no more."""

    def __bool__(self) -> bool:
        return bool(self.metrics or self.events or self.state or self.problem or self.restarted or self.history)


class Reader:
    """Reads what is new in one run directory. Knows no screen and no thread."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._metrics = Tail(run.metrics)
        self._events = Tail(run.events)
        self._stamp: tuple[int, int] | None = None
        self._state: State | None = None
        self._problem = ""
        """Why the state cannot be read, as it was told last."""
        self._restarts = 0

    def preview(self) -> Batch | None:
        """Records from all over a long file, and its last ones; None for a file that is read soon enough."""
        try:
            size = self._run.metrics.stat().st_size
            if size < LONG_BYTES:
                return None
            batch = Batch(metrics=samples(self._run.metrics, size, _records_of))
        except OSError:
            return None
        self._read_state(batch, look_for_supervisor=True)
        return batch

    def load(self, is_cancelled: Callable[[], bool]) -> Batch:
        """All there is, as one history."""
        history, found = History(), Batch()
        while not is_cancelled():
            batch = self.read()
            if batch.restarted:
                history.forget_metrics()
            history.add_metrics(batch.metrics)
            history.add_events(batch.events)
            found.state = batch.state or found.state
            found.problem = batch.problem or found.problem
            if not batch.is_history:
                break
            time.sleep(0.001)  # the screen gets its turn
        found.history, found.events = history, list(history.events)
        return found

    def read(self, *, look_for_supervisor: bool = True) -> Batch:
        """Everything new since the last call, at most about 1 MiB of each file."""
        batch = Batch(
            metrics=[r for line in self._metrics.read() if (r := parse_record(line)) is not None],
            events=[r for line in self._events.read() if (r := parse_record(line)) is not None],
            is_history=self._metrics.is_behind or self._events.is_behind,
        )
        batch.restarted = self._metrics.restarts != self._restarts
        self._restarts = self._metrics.restarts
        self._read_state(batch, look_for_supervisor)
        return batch

    def close(self) -> None:
        self._metrics.close()
        self._events.close()

    def _read_state(self, batch: Batch, look_for_supervisor: bool) -> None:
        problem = ""
        try:
            status = self._run.state.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp == self._stamp and not look_for_supervisor:
                return
            state = self._run.read_state().observed()
            if self._state is None or self._problem or _told(state) != _told(self._state):
                batch.state = state
            self._state = state
            self._stamp = stamp
        except OSError as error:
            problem = f"{self._run.state} cannot be read: {error.strerror}"
        except EngineError as error:
            problem = error.message
        if problem != self._problem:  # told once, and not at every look
            self._problem = batch.problem = problem


def _told(state: State) -> State:
    """What a screen tells of a state: its iteration comes with the metrics, and every beat would be a frame."""
    return replace(state, heartbeat=0.0, iteration=0)


class Pulse:
    """Tells whether whoever reads a run's directory still gets answers."""

    def __init__(self) -> None:
        self._asked: float | None = None

    def beat(self) -> None:
        """What was asked for has come."""
        self._asked = time.monotonic()

    def stop(self) -> None:
        self._asked = None

    @property
    def silence_s(self) -> float:
        """How long the directory has not answered; 0 before it was asked."""
        asked = self._asked  # the reader's thread may set it to None at any moment
        return time.monotonic() - asked if asked is not None else 0.0


class FeedUpdate(Message, bubble=False):
    """New facts about the run that a screen follows."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch


def follow(run: RunDirectory, target: MessagePump, pulse: Pulse) -> None:
    """Post a `FeedUpdate` to `target` for all that is new in `run`, until the worker is cancelled.

    The body of a thread worker.
    """
    worker = get_current_worker()
    reader = Reader(run)
    waiting = Batch()
    last_post = last_look = time.monotonic()

    def is_left() -> bool:
        pulse.beat()
        return worker.is_cancelled

    try:
        pulse.beat()  # it may be silent from the start
        if (preview := reader.preview()) is not None:
            target.post_message(FeedUpdate(preview))
            time.sleep(PREVIEW_S)  # the first picture needs the processor more
        # In one piece: a screen that gets a long history in many is busy with nothing else.
        target.post_message(FeedUpdate(reader.load(is_left)))
        while not is_left():
            now = time.monotonic()
            look = now - last_look >= STATE_S
            last_look = now if look else last_look
            _add(waiting, reader.read(look_for_supervisor=look))
            if waiting and now - last_post >= BATCH_S:
                target.post_message(FeedUpdate(waiting))
                waiting, last_post = Batch(), now
            time.sleep(POLL_S)
    finally:
        pulse.stop()
        reader.close()


def _records_of(line: bytes) -> list[Record]:
    return [record] if (record := parse_record(line)) is not None else []


def samples(path: Path, size: int, records_of: Callable[[bytes], list[Record]]) -> list[Record]:
    """Metric records at `SAMPLES` places of a file, and those at its end. Raises OSError."""
    found: dict[int, Record] = {}
    with path.open("rb") as file:
        for place in range(SAMPLES + 1):
            start = (size - _LAST_BYTES) * place // SAMPLES
            file.seek(start)
            lines = file.read(_LAST_BYTES).split(b"\n")
            for line in lines[1 if start else 0 :][: 4 if place < SAMPLES else None]:
                for record in records_of(line):
                    if "kind" not in record and isinstance(record.get("iteration"), int):
                        found[record["iteration"]] = {**found.get(record["iteration"], {}), **record}
    # A resumed run repeats iterations: without order the later ones would undo the others.
    return [found[iteration] for iteration in sorted(found)]


def _add(batch: Batch, more: Batch) -> None:
    if more.restarted:
        batch.metrics.clear()
        batch.restarted = True
    batch.metrics += more.metrics
    batch.events += more.events
    batch.state = more.state or batch.state
    batch.problem = more.problem or batch.problem
    batch.is_history = more.is_history


def settings_of(run: RunDirectory) -> Settings:
    """The settings of a run. Raises EngineError for a damaged or newer file."""
    from engine import settings_file  # not needed for the first frame

    return settings_file.load(run.settings)


def plan_of(run: RunDirectory) -> Plan:
    """The plan of a run. Raises RunError for a damaged or newer file."""
    return run.read_plan()


def wants_bell() -> bool:
    """Whether an alert rings the terminal's bell. Raises SettingsError for a bad notifications.toml."""
    from engine.monitor.notify import load_rules

    return load_rules().bell


def checkpoint_size(run: RunDirectory, iteration: int) -> tuple[int, int]:
    """The iteration, and how many bytes its checkpoint takes. Raises OSError."""
    place = run.checkpoints / f"iter_{iteration:07d}"
    return iteration, sum(file.stat().st_size for file in place.rglob("*") if file.is_file())


def export_log(job: str, paths: tuple[Path, ...], level: Level) -> str:
    """Copy what a log view shows, or what `level` leaves of it, to where the program was started. Raises OSError."""
    kind = "" if level is Level.ALL else f"-{level.value.replace(' ', '-')}"
    place = f"{paths[0].parent.name}-{paths[0].stem if len(paths) == 1 else 'all'}"
    name = re.sub(r"[^\w.-]+", "-", f"{job}-{place}{kind}-{time.strftime('%H%M%S')}.log")
    target = Path.cwd() / name
    count = export(paths[0], level, target) if len(paths) == 1 else export_merged(paths, level, target)
    return f"{words.plural(count, 'line')} written to {target}"


def rank_logs(shown: Path) -> tuple[Path, ...]:
    """The logs of all ranks of the attempt that the log `shown` is of, by rank."""
    return tuple(sorted(shown.parent.glob("rank-*.log"), key=_rank_of))


def log_files(run: RunDirectory, state: State | None) -> list[tuple[str, Path]]:
    """The logs worth reading now, the most telling first, as (title, path).

    That is the rank that failed first; else the last rank of a training, where Megatron prints
    its iteration lines, and rank 0 of other steps. What the launcher says comes after the ranks,
    then the supervisor, then what earlier attempts left, the newest first.
    """
    here = run.attempt(state.attempt, state.step) if state is not None and state.attempt else None
    found = _attempt_logs(here) if here is not None else []
    found.append(("supervisor", run.supervisor_log))
    for attempt in sorted(run.attempts.glob("*-*"), reverse=True):
        if attempt != here:
            found += [
                (f"{title} · attempt {attempt.name.partition('-')[0]}", path) for title, path in _attempt_logs(attempt)
            ]
    return found


def _attempt_logs(attempt: Path) -> list[tuple[str, Path]]:
    step = attempt.name.partition("-")[2]
    errors = sorted(attempt.glob("error-rank-*.json"), key=_changed)
    failed = _rank_of(errors[0]) if errors else None
    last_first = -1 if step == "train" else 1
    ranks = sorted(attempt.glob("rank-*.log"), key=lambda p: (_rank_of(p) != failed, last_first * _rank_of(p)))
    return [
        *((f"{step} · rank {_rank_of(path)}", path) for path in ranks),
        (f"{step} · launcher", attempt / "launcher.log"),
    ]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf


def _rank_of(path: Path) -> int:
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One run in a list of runs."""

    run: RunDirectory
    state: State
    iterations: int = 0
    """Length of the training; 0 when it cannot be told."""
    loss: float | None = None
    changed: float = 0.0
    """Unix seconds of the last change."""
    labels: Labels = field(default_factory=Labels)


def overviews(root: Path, known: Mapping[str, Overview] | None = None) -> list[Overview]:
    """The runs in `root`, newest first; those in `known` that did not change are taken from there.

    A run whose state cannot be read is left out; one that does not answer stays as it was known.
    Raises RunError when `root` cannot be read.
    """
    known = known or {}
    runs, problems = directory.look_around(root)
    found = []
    for run, one in patience.each(runs, lambda run: _overview(run, known.get(run.name))):
        if isinstance(one, Overview):
            found.append(one)
        elif one is not None:
            problems[run.name] = str(one.strerror)
    for name, problem in problems.items():
        if (before := known.get(name)) is not None:
            found.append(replace(before, state=replace(before.state, message=problem)))
    return found


def _overview(run: RunDirectory, before: Overview | None) -> Overview | None:
    try:
        changed = run.state.stat().st_mtime
        state = run.read_state().observed()
    except (EngineError, OSError):
        return None
    written = labels.read(run.path)
    if before is not None and before.state == state and before.changed == changed:
        return before if before.labels == written else replace(before, labels=written)
    iterations = before.iterations if before is not None else _iterations_of(run)
    loss = _last_loss(run)
    return Overview(run=run, state=state, iterations=iterations, loss=loss, changed=changed, labels=written)


def kept(found: list[Overview]) -> list[Overview]:
    """Those that nobody has put away."""
    return [one for one in found if not one.labels.is_archived]


def _iterations_of(run: RunDirectory) -> int:
    try:
        return settings_of(run).training.iterations
    except EngineError:
        return 0


def _last_loss(run: RunDirectory) -> float | None:
    """The loss in the last records; the rest of the file is not read."""
    try:
        with run.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LAST_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        record = parse_record(line)
        if record is not None and isinstance(record.get("loss"), float):
            return float(record["loss"])
    return None
