"""The supervisor's eye on its run: alerts from records, clock and disk; the cause of a failure."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine import secrets
from engine.errors import EngineError
from engine.monitor.alert import Alert, facts_of
from engine.monitor.alerts import AlertWatch
from engine.monitor.diagnose import diagnose
from engine.monitor.notify import Notifier, NotifyRules, load_rules
from engine.monitor.record import parse_record
from engine.monitor.tail import Tail
from engine.paths import write_atomic
from engine.plan.plan import Plan
from engine.run.directory import RunDirectory
from engine.run.gauges import Gauges
from engine.run.reports import Outcome, Verdict
from engine.run.space import GIB, SpaceGuard
from engine.settings import Settings

_DISK_EVERY_S = 30.0
_SAID_BY_RANKS = frozenset({"phase", "progress", "checkpoint", "queue"})
"""Kinds of events that a working step writes, not its supervisor."""


class Health:
    """Reads what the run writes, once, and says what it noticed."""

    def __init__(self, run: RunDirectory, settings: Settings, log: Callable[[str], None]) -> None:
        self._run = run
        self._log = log
        self._metrics, self._events = Tail(run.metrics), Tail(run.events)
        self._notifier = Notifier(_rules(log), run.name, log)
        self._next_disk_look = 0.0
        self.adopt(settings)
        self.iteration: int | None = None
        """The last iteration that was recorded."""
        self.reached: int | None = None
        """The last iteration that was told of, recorded or not, since this supervisor began."""
        self.records = 0
        """How many records the ranks have written since this supervisor began."""
        self._skip_history()

    def adopt(self, settings: Settings) -> None:
        """Judge by these settings from now on; what was watched before a training does not count."""
        self.space = SpaceGuard(self._run, settings)
        checkpoint_gib = self.space.need_bytes / GIB
        self._watch = AlertWatch(facts_of(settings, checkpoint_gib=checkpoint_gib), began=time.time())
        self._gauges = Gauges(self._run, settings, self._log)

    def look(self, *, is_training: bool) -> list[Alert]:
        """What is new since the last look; call it about once a second."""
        now = time.time()
        alerts: list[Alert] = []
        for record in self._new_records():
            alerts += self._watch.feed(record, now)
            self._gauges.feed(record)
        if is_training:
            alerts += self._watch.tick(now)
            if (samples := self._gauges.read_gpus()) is not None:
                alerts += self._watch.feed_gpus(samples, now)
        if time.monotonic() >= self._next_disk_look:
            self._next_disk_look = time.monotonic() + _DISK_EVERY_S
            free = self.space.free_bytes()
            if free is not None:  # else a share that is gone for a moment
                self._watch.note_checkpoint(self.space.need_bytes / GIB)
                alerts += self._watch.feed_disk(free / GIB, now)
        for alert in alerts:
            self._notifier.notify(alert, now)
        return alerts

    def close(self) -> None:
        """Send what is still to be sent."""
        self._notifier.close()

    def _new_records(self) -> list[dict[str, Any]]:
        found = [record for line in (*self._events.read(), *self._metrics.read()) if (record := parse_record(line))]
        for record in found:
            kind = record.get("kind")
            self.records += kind is None or kind in _SAID_BY_RANKS
            if kind is None and isinstance(record.get("iteration"), int):
                self.iteration = self.reached = record["iteration"]
            elif kind == "progress" and record.get("step") == "train" and isinstance(record.get("done"), int):
                self.reached = record["done"]
        return found

    def _skip_history(self) -> None:
        """What happened before this supervisor began was told by the one before it."""
        self._events.read_all()
        for line in self._metrics.read_all():
            record = parse_record(line)
            if record and isinstance(record.get("iteration"), int):
                self.iteration = record["iteration"]


def explain(attempt: Path, verdict: Verdict, settings: Settings, plan: Plan) -> Verdict:
    """A failed `verdict` with the cause that the logs show, kept in `diagnosis.json`."""
    if verdict.outcome is not Outcome.FAILED:
        return verdict
    found = diagnose(attempt, settings, plan)
    if found is None:
        return verdict
    with contextlib.suppress(OSError):  # a full disk, of which it may speak
        write_atomic(attempt / "diagnosis.json", secrets.redact(json.dumps(found.to_json())) + "\n", mode=0o600)
    message = secrets.redact(found.sentence)
    return replace(verdict, message=message, hint=found.next_step, is_curable=found.is_curable)


def _rules(log: Callable[[str], None]) -> NotifyRules:
    try:
        return load_rules()
    except EngineError as error:
        # A bad notification file must not keep a run from starting.
        log(f"no notifications: {error.message} ({error.hint})")
        return NotifyRules()
