"""A training that somebody else started, as the monitor's feed: its records, its alerts, and how it seems to be.

There is no supervisor to ask: whether it runs is told from when its files were written last, from
the end that a log announces, and from the cause of a failure in the ends of its logs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from textual.message import Message
from textual.message_pump import MessagePump
from textual.worker import get_current_worker

from engine.errors import EngineError
from engine.monitor.alert import Alert
from engine.monitor.alerts import AlertWatch
from engine.monitor.diagnose import Diagnosis, diagnose_texts, read_logs
from engine.monitor.jobs import Job, find_jobs
from engine.monitor.metrics import LogReader, Record
from engine.monitor.notify import Notifier
from engine.monitor.sources import LogFiles
from engine.run.state import State, Status, StepState
from gptoss_tui import words
from gptoss_tui.feed import BATCH_S, LONG_BYTES, POLL_S, Batch, FeedUpdate, samples
from gptoss_tui.history import History

RESCAN_S = 2.0
"""How often the place is looked at for new logs and newer trainings."""
LOOK_S = 1.0
SNAPSHOT_S = 1.5
"""Between two pictures of a long log while it is read."""
_STEP = "train"
_COUNTERS = {"skipped", "nan_iterations"}


class JobsFound(Message, bubble=False):
    """The trainings of the place, the newest first, and the followed one as it is now."""

    def __init__(self, jobs: list[Job], followed: Job) -> None:
        super().__init__()
        self.jobs = jobs
        self.followed = followed


class ForeignJob:
    """Reads what is new of one training. Knows no screen and no thread."""

    def __init__(self, job: Job, now: float) -> None:
        self.job = job
        self.history = History()
        self._source = job.open()
        self._watch = AlertWatch(began=now)
        self._is_live = False
        self._has_ended = False
        self._ended_by: object = None
        """The log that told the end, where there are several."""
        self._was_quiet = False
        """True for one that had stopped before we came: its silence is no news."""
        self._first_t: float | None = None
        self._checkpoint: int | None = None
        self._diagnosed = 0.0
        """Age of the files that `_cause` was told from."""
        self._cause: Diagnosis | None = None

    @property
    def is_behind(self) -> bool:
        return self._source.is_behind

    def read(self, now: float) -> tuple[list[Record], list[Record]]:
        """New metric and event records, alerts among the events; about 1 MiB of each file at most."""
        metrics: list[Record] = []
        events: list[Record] = []
        began = time.time()
        for record in self._source.read():
            self._note(record)
            self._was_quiet = False
            if "kind" not in record:
                metrics.append(record)
            elif not self._is_live and record.get("t", 0.0) >= began:
                # A line of a backlog that has no time of its own: when it was read says nothing.
                events.append({**record, "t": None})
            else:
                events.append(record)
            # What was written before we came is judged by its own clock.
            alerts = self._watch.feed(record, now if self._is_live else None)
            events += [alert.to_json() for alert in alerts]
        if not self._is_live and not self._source.is_behind:
            self._is_live = True
            self._watch.catch_up(min(now, self.job.changed))
            self._was_quiet = self._is_quiet(now)
        total = next((record["of"] for record in reversed(metrics) if "of" in record), None)
        if total:
            events.append(_length(total, now))
        self.history.add_metrics(metrics)
        self.history.add_events(events)
        return metrics, events

    def preview(self) -> list[Record]:
        """Records from all over a long log, and its last ones; none where all is read soon enough."""
        if not isinstance(self._source, LogFiles):
            return []
        found: list[Record] = []
        for path in self.job.files:
            try:
                if (size := path.stat().st_size) >= LONG_BYTES:
                    found += samples(path, size, partial(_records_of, LogReader()))
            except OSError:
                continue
        # Counters are sums over all lines, of which these are a few.
        return [{name: value for name, value in one.items() if name not in _COUNTERS} for one in found]

    def tick(self, now: float) -> list[Record]:
        """Alerts that the clock alone tells."""
        if not self._is_live or self._was_quiet or self.state(now).status is Status.FINISHED:
            return []
        found = [alert.to_json() for alert in self._watch.tick(now)]
        self.history.add_events(found)
        return found

    def take(self, job: Job) -> None:
        """What is known of the same training after another look at its place."""
        if isinstance(self._source, LogFiles):
            for path in job.files:
                self._source.add(path)
        self.job = replace(job, name=self.job.name)

    def state(self, now: float) -> State:
        """What its files tell of how it is."""
        status, message = self._judge(now)
        is_over = not status.is_live
        ended = self.job.changed if is_over else None
        began = self._first_t if self._first_t is not None else self.job.changed
        step = StepState(name=_STEP, status=status, attempt=1, started=began, ended=ended, message=message)
        return State(
            name=self.job.name, status=status, steps=(step,), step=_STEP, attempt=1, iteration=self.history.iteration,
            checkpoint=self._checkpoint, created=min(began, ended or began), ended=ended, message=message,
        )  # fmt: skip

    def cause(self) -> Diagnosis | None:
        """What the ends of its logs name as the cause of a failure."""
        if self._diagnosed != self.job.changed:
            self._diagnosed = self.job.changed
            self._cause = diagnose_texts(read_logs(self.job.logs))
        return self._cause

    def _judge(self, now: float) -> tuple[Status, str]:
        last, total = self.history.iteration, self.history.iterations
        done = f"iteration {last:,} of {total:,}" if total else f"iteration {last:,}"
        if self._has_ended or (total and last >= total and self._is_quiet(now)):
            return Status.FINISHED, f"the training has ended at {done}"
        if not self._is_quiet(now):
            return Status.RUNNING, ""
        if (cause := self.cause()) is not None:
            return Status.FAILED, f"{cause.sentence}; the last was {done}"
        silent = words.age(max(0.0, now - self.job.changed))
        return Status.STOPPED, f"nothing was written any more since {silent}; the last was {done}"

    def _is_quiet(self, now: float) -> bool:
        return now - self.job.changed > self._watch.silence_limit_s

    def _note(self, record: Record) -> None:
        if self._first_t is None and isinstance(record.get("t"), (int, float)):
            self._first_t = record["t"]
        kind, source = record.get("kind"), record.get("source")
        if kind == "finished":
            self._has_ended, self._ended_by = True, source
        elif ("loss" in record and source == self._ended_by) or kind in ("step-started", "resumed"):
            # A log may hold several jobs, one after the other. Another rank's log is read after the one that ended.
            self._has_ended = False
        elif kind == "checkpoint" and isinstance(record.get("iteration"), int):
            self._checkpoint = record["iteration"]
        if kind == "phase":
            record.setdefault("step", _STEP)


def follow(job: Job, places: list[str], target: MessagePump, notifier: Notifier | None = None) -> None:
    """Post a `FeedUpdate` to `target` for all that is new in `job`, and `JobsFound` for its place.

    The body of a thread worker; until it is cancelled.
    """
    worker = get_current_worker()
    foreign = ForeignJob(job, time.time())
    _load(foreign, target, lambda: worker.is_cancelled)
    waiting, state = Batch(source=job.name), None
    last_post = last_look = last_scan = 0.0
    while not worker.is_cancelled:
        now = time.monotonic()
        metrics, events = foreign.read(time.time())
        if now - last_look >= LOOK_S:
            last_look = now
            events += foreign.tick(time.time())
            if (seen := foreign.state(time.time())) != state:
                waiting.state = state = seen
        for event in events:
            if notifier is not None and event.get("kind") == "alert":
                notifier.notify(Alert.from_json(event), time.time())
        waiting.metrics += metrics
        waiting.events += events
        if waiting and now - last_post >= BATCH_S:
            target.post_message(FeedUpdate(waiting))
            waiting, last_post = Batch(source=job.name), now
        if now - last_scan >= RESCAN_S:
            last_scan = now
            _scan(foreign, places, target)
        time.sleep(POLL_S)


def _load(foreign: ForeignJob, target: MessagePump, is_cancelled: Callable[[], bool]) -> None:
    """All there is, as one history; of a long log also what was read so far, again and again."""
    last = time.monotonic()
    if preview := foreign.preview():
        now = time.time()
        total = next((record["of"] for record in reversed(preview) if "of" in record), 0)
        batch = Batch(metrics=preview, state=foreign.state(now), source=foreign.job.name)
        batch.events.append(_length(total, now))
        target.post_message(FeedUpdate(batch))
    while not is_cancelled():
        foreign.read(time.time())
        now = time.monotonic()
        is_last = not foreign.is_behind
        # What was read so far of a long log ends far before what the preview shows.
        if is_last or (now - last >= SNAPSHOT_S and not preview):
            last = now
            # The screen may read while this thread goes on writing.
            history = copy.deepcopy(foreign.history)
            state = foreign.state(time.time())
            batch = Batch(history=history, events=list(history.events), state=state, source=foreign.job.name)
            target.post_message(FeedUpdate(batch))
        if is_last:
            return
        time.sleep(0.001)  # the screen gets its turn


def _records_of(reader: LogReader, line: bytes) -> list[Record]:
    return reader.read(line.decode("utf-8", "replace"), 0.0)


def _length(iterations: int, now: float) -> Record:
    """How long the training is, as a run's own worker tells it."""
    return {"t": now, "kind": "progress", "step": _STEP, "unit": "iterations", "total": iterations}


def _scan(foreign: ForeignJob, places: list[str], target: MessagePump) -> None:
    try:
        jobs = find_jobs(places)
    except (EngineError, OSError):
        return  # rotated away at this moment, or a mount that is gone for a while
    same = next((one for one in jobs if foreign.job.files[0] in one.files), None)
    if same is not None:
        foreign.take(same)
    target.post_message(JobsFound(jobs, foreign.job))
