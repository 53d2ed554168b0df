"""Tell people about alerts: which ones, when, and how. Read from notifications.toml.

Secrets never stand in the file: a URL is the name of an environment variable that holds it.
Sending happens in a thread, so that a slow server holds up nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import re
import shlex
import subprocess
import threading
import tomllib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from datetime import time as TimeOfDay
from pathlib import Path
from typing import Any

from engine import secrets, visible
from engine.errors import EngineError, SettingsError
from engine.findings import Severity
from engine.monitor.alert import Alert
from engine.options import suggest
from engine.paths import config_root

FILE_NAME = "notifications.toml"
SEND_LIMIT_S = 20.0
"""A command or a server may take this long for one alert."""

_RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.ERROR: 2}
_QUIET = re.compile(r"(\d\d?):(\d\d) ?- ?(\d\d?):(\d\d)")
_HOUR_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyRules:
    """Which alerts are sent, when and where."""

    minimum: str = "warning"
    """`info`, `warning` or `error`: the least severe alert that is sent."""
    bell: bool = True
    """Ring the terminal's bell where a screen is open."""
    command: str = ""
    """A command, run without a shell, that gets the alert as JSON on its standard input."""
    url_variables: tuple[str, ...] = ()
    """Environment variables that hold a URL of the Apprise library: ntfy://…, slack://…, json://…"""
    quiet_hours: str = ""
    """`22:00-07:00` in local time; empty for none."""
    errors_in_quiet_hours: bool = True
    """Send errors at night too."""
    repeat_minutes: float = 60.0
    """The same alert is not sent again within this time."""
    per_hour: int = 20
    """No more than this many in one hour, whatever happens."""

    def __post_init__(self) -> None:
        if self.minimum not in set(Severity):
            raise SettingsError(f"minimum = {self.minimum!r} is not a severity", "use info, warning or error")
        if self.quiet_hours and _parse_hours(self.quiet_hours) is None:
            raise SettingsError(f"quiet_hours = {self.quiet_hours!r} cannot be read", "write them as 22:00-07:00")
        for name in self.url_variables:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise SettingsError(
                    "url_variables holds something that names no environment variable",
                    "put the URL into a variable, for example GPTOSS_NTFY_URL, and give its name here",
                )


def load_rules(path: Path | None = None) -> NotifyRules:
    """The rules in `path`, or in the user's configuration; the defaults when there is no file.

    Raises SettingsError for a file that cannot be understood.
    """
    path = path or config_root() / FILE_NAME
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return NotifyRules()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", "see docs/monitoring.md") from error
    kinds = {item.name: type(item.default) for item in fields(NotifyRules)}
    for name, value in values.items():
        if name not in kinds:
            raise SettingsError(f"{path}: there is no {name!r}", suggest(name, list(kinds)) or "see docs/monitoring.md")
        values[name] = _checked(path, name, value, kinds[name])
    return NotifyRules(**values)


class Gate:
    """Which alerts pass: severity, quiet hours, repetition, rate. Knows no way to send."""

    def __init__(self, rules: NotifyRules) -> None:
        self._rules = rules
        self._last: dict[str, float] = {}
        self._sent: deque[float] = deque()

    def admits(self, alert: Alert, now: float) -> bool:
        """True when `alert` is to be sent now; it then counts as sent."""
        rules = self._rules
        if _RANK[alert.severity] < _RANK[Severity(rules.minimum)]:
            return False
        if self._is_quiet(now) and not (rules.errors_in_quiet_hours and alert.severity is Severity.ERROR):
            return False
        last = self._last.get(alert.name)
        # A clock that was set back must not silence anything.
        if last is not None and 0 <= now - last < rules.repeat_minutes * 60:
            return False
        while self._sent and not 0 <= now - self._sent[0] < _HOUR_S:
            self._sent.popleft()
        if len(self._sent) >= rules.per_hour:
            return False
        self._last[alert.name] = now
        self._sent.append(now)
        return True

    def _is_quiet(self, now: float) -> bool:
        hours = _parse_hours(self._rules.quiet_hours)
        if hours is None:
            return False
        begin, end = hours
        clock = datetime.fromtimestamp(now).time()
        return begin <= clock < end if begin <= end else clock >= begin or clock < end


class Notifier:
    """Sends admitted alerts by command and URL, one after the other, in a thread of its own."""

    def __init__(self, rules: NotifyRules, job: str, on_problem: Callable[[str], None]) -> None:
        """`job` names the run in messages; `on_problem` is told (from the thread) what could not be sent."""
        self._rules = rules
        self._job = job
        self._gate = Gate(rules)
        self._on_problem = on_problem
        self._queue: queue.SimpleQueue[Alert | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def notify(self, alert: Alert, now: float) -> bool:
        """Send `alert` when the rules admit it; True when they do (a screen then rings its bell)."""
        if not self._gate.admits(alert, now):
            return False
        if self._rules.command or self._rules.url_variables:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="notifier", daemon=True)
                self._thread.start()
            self._queue.put(alert)
        return True

    def close(self, timeout_s: float = SEND_LIMIT_S) -> None:
        """Wait for what is still to be sent, at most `timeout_s`."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout_s)
            self._thread = None

    def _work(self) -> None:
        while (alert := self._queue.get()) is not None:
            for send in (self._run_command, self._send_urls):
                try:
                    send(alert)
                except (EngineError, OSError, subprocess.SubprocessError) as error:
                    self._on_problem(f"the alert {alert.name!r} was not sent: {error}")

    def _run_command(self, alert: Alert) -> None:
        if self._rules.command:
            text = secrets.redact(json.dumps({"job": self._job, **alert.to_json()}))
            subprocess.run(shlex.split(self._rules.command), input=text, text=True, timeout=SEND_LIMIT_S, check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    def _send_urls(self, alert: Alert) -> None:
        if not self._rules.url_variables:
            return
        service = _apprise()
        for name in self._rules.url_variables:
            url = os.environ.get(name, "")
            if not url or not service.add(url):
                # Never the URL itself: it holds the secret.
                raise SettingsError(f"${name} holds no URL that Apprise knows", "for example ntfy://ntfy.sh/topic")
        title = f"{self._job}: {alert.message}"
        body = f"{alert.evidence}\nlikely: {alert.cause}\nnext: {alert.next_step}"
        if not service.notify(title=_fit(title).replace("\n", " "), body=_fit(body)):
            raise EngineError("a service did not take the message", "try its URL with: apprise -vv URL")


def _fit(text: str) -> str:
    """Words of a log, fit to leave this machine."""
    return visible.clean(secrets.redact(text))


def _apprise() -> Any:
    try:
        # By name: an optional package, whose absence must not fail the type check either.
        return importlib.import_module("apprise").Apprise()
    except ModuleNotFoundError as error:
        raise SettingsError("the package apprise is not installed", "pip install apprise") from error


def _checked(path: Path, name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if type(value) is not kind:
        raise SettingsError(f"{path}: {name} = {value!r} has the wrong type", "see docs/monitoring.md")
    return value


def _parse_hours(text: str) -> tuple[TimeOfDay, TimeOfDay] | None:
    found = _QUIET.fullmatch(text.strip())
    if found is None:
        return None
    try:
        return TimeOfDay(int(found[1]), int(found[2])), TimeOfDay(int(found[3]), int(found[4]))
    except ValueError:
        return None
