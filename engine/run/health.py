"""The supervisor's eye on its run: alerts from records, clock and disk; the cause of a failure."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.errors import EngineError
from engine.monitor.alert import Alert, facts_of
from engine.monitor.alerts import AlertWatch
from engine.monitor.diagnose import diagnose
from engine.monitor.notify import Notifier, NotifyRules, load_rules
from engine.monitor.tail import Tail
from engine.paths import write_atomic
from engine.plan.plan import Plan
from engine.run.directory import RunDirectory, parse_record
from engine.run.reports import Outcome, Verdict
from engine.settings import Settings

_GIB = 1 << 30
_DISK_EVERY_S = 30.0


class Health:
    """Reads what the run writes, once, and says what it noticed."""

    def __init__(self, run: RunDirectory, settings: Settings, log: Callable[[str], None]) -> None:
        self._run = run
        self._watch = AlertWatch(facts_of(settings), began=time.time())
        self._metrics, self._events = Tail(run.metrics), Tail(run.events)
        self._notifier = Notifier(_rules(log), run.name, log)
        self._next_disk_look = 0.0
        self.iteration: int | None = None
        """The last iteration that was recorded."""
        self._skip_history()

    def look(self, *, is_training: bool) -> list[Alert]:
        """What is new since the last look; call it about once a second."""
        now = time.time()
        alerts: list[Alert] = []
        for record in self._new_records():
            alerts += self._watch.feed(record, now)
        if is_training:
            alerts += self._watch.tick(now)
        if now >= self._next_disk_look:
            self._next_disk_look = now + _DISK_EVERY_S
            with contextlib.suppress(OSError):  # a share that is gone for a moment
                alerts += self._watch.feed_disk(shutil.disk_usage(self._run.path).free / _GIB, now)
        for alert in alerts:
            self._notifier.notify(alert, now)
        return alerts

    def close(self) -> None:
        """Send what is still to be sent."""
        self._notifier.close()

    def _new_records(self) -> list[dict[str, Any]]:
        found = [record for line in (*self._events.read(), *self._metrics.read()) if (record := parse_record(line))]
        for record in found:
            if "kind" not in record and isinstance(record.get("iteration"), int):
                self.iteration = record["iteration"]
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
    write_atomic(attempt / "diagnosis.json", json.dumps(found.to_json()) + "\n")
    return replace(verdict, message=found.sentence, hint=found.next_step, is_curable=found.is_curable)


def _rules(log: Callable[[str], None]) -> NotifyRules:
    try:
        return load_rules()
    except EngineError as error:
        # A bad notification file must not keep a run from starting.
        log(f"no notifications: {error.message} ({error.hint})")
        return NotifyRules()
