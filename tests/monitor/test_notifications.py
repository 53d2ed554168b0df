"""Which alerts are sent, when, and that secrets stay where they are."""

from __future__ import annotations

import json
import sys
import time
import types

import pytest

from engine.errors import SettingsError
from engine.findings import Severity
from engine.monitor.alert import Alert
from engine.monitor.notify import Gate, Notifier, NotifyRules, load_rules

NOON = time.mktime((2026, 11, 22, 12, 0, 0, 0, 0, -1))
NIGHT = time.mktime((2026, 11, 22, 23, 30, 0, 0, 0, -1))
SECRET = "fake://token-7f3a@example.invalid/topic"


def alert(key: str = "loss.spike", severity: Severity = Severity.WARNING, subject: str = "") -> Alert:
    return Alert(key=key, severity=severity, message="the loss jumped", evidence="9 instead of 2", cause="a batch",
                 next_step="wait", t=NOON, subject=subject)  # fmt: skip


def test_less_severe_alerts_are_kept_back():
    gate = Gate(NotifyRules())
    assert not gate.admits(alert(severity=Severity.INFO), NOON)
    assert gate.admits(alert(), NOON)
    assert Gate(NotifyRules(minimum="info")).admits(alert(severity=Severity.INFO), NOON)


def test_the_same_alert_is_not_repeated_too_soon():
    gate = Gate(NotifyRules(repeat_minutes=10))
    assert gate.admits(alert(), NOON)
    assert not gate.admits(alert(), NOON + 599)
    assert gate.admits(alert(), NOON + 600)
    assert gate.admits(alert(subject="GPU 1"), NOON) and gate.admits(alert(subject="GPU 2"), NOON)


def test_no_more_than_so_many_in_an_hour():
    gate = Gate(NotifyRules(per_hour=3))
    sent = [gate.admits(alert(f"rule.{i}"), NOON + i) for i in range(10)]
    assert sent == [True] * 3 + [False] * 7
    assert gate.admits(alert("rule.11"), NOON + 3601)


def test_a_clock_that_was_set_back_silences_nothing():
    gate = Gate(NotifyRules(per_hour=1))
    assert gate.admits(alert(), NOON)
    assert gate.admits(alert(), NOON - 3 * 3600)


@pytest.mark.parametrize(("hours", "quiet"), [("22:00-07:00", True), ("23:00 - 23:45", True), ("07:00-22:00", False)])
def test_quiet_hours(hours, quiet):
    gate = Gate(NotifyRules(quiet_hours=hours))
    assert gate.admits(alert(), NIGHT) is not quiet
    assert gate.admits(alert("loss.nan", Severity.ERROR), NIGHT)
    assert not Gate(NotifyRules(quiet_hours="22:00-07:00", errors_in_quiet_hours=False)).admits(
        alert("loss.nan", Severity.ERROR), NIGHT
    )


def test_a_command_gets_the_alert_as_json(tmp_path):
    target = tmp_path / "got.json"
    code = f"import sys; open({str(target)!r}, 'w').write(sys.stdin.read())"
    notifier = Notifier(NotifyRules(command=f'{sys.executable} -c "{code}"'), "night run", pytest.fail)
    assert notifier.notify(alert(), NOON)
    notifier.close()
    got = json.loads(target.read_text())
    assert (got["job"], got["key"], got["severity"], got["kind"]) == ("night run", "loss.spike", "warning", "alert")


def test_a_command_that_fails_is_told():
    problems: list[str] = []
    notifier = Notifier(NotifyRules(command="/nonexistent/program"), "run", problems.append)
    notifier.notify(alert(), NOON)
    notifier.close()
    assert len(problems) == 1 and "loss.spike" in problems[0]


class FakeApprise:
    """Takes fake:// URLs; remembers what was sent."""

    sent: list[tuple[str, str]] = []

    def __init__(self) -> None:
        self._urls: list[str] = []

    def add(self, url: str) -> bool:
        self._urls.append(url)
        return url.startswith("fake://")

    def notify(self, title: str, body: str) -> bool:
        self.sent.append((title, body))
        return True


def test_urls_come_from_the_environment(monkeypatch):
    monkeypatch.setitem(sys.modules, "apprise", types.SimpleNamespace(Apprise=FakeApprise))
    monkeypatch.setattr(FakeApprise, "sent", [])
    monkeypatch.setenv("MY_URL", SECRET)
    notifier = Notifier(NotifyRules(url_variables=("MY_URL",)), "night run", pytest.fail)
    notifier.notify(alert(), NOON)
    notifier.close()
    assert FakeApprise.sent == [("night run: the loss jumped", "9 instead of 2\nlikely: a batch\nnext: wait")]


@pytest.mark.parametrize("value", ["", SECRET.replace("fake", "unknown")])
def test_a_bad_url_is_told_without_its_secret(monkeypatch, value):
    monkeypatch.setitem(sys.modules, "apprise", types.SimpleNamespace(Apprise=FakeApprise))
    monkeypatch.setenv("MY_URL", value)
    problems: list[str] = []
    notifier = Notifier(NotifyRules(url_variables=("MY_URL",)), "run", problems.append)
    notifier.notify(alert(), NOON)
    notifier.close()
    assert len(problems) == 1 and "$MY_URL" in problems[0] and "token-7f3a" not in problems[0]


def test_without_apprise_the_problem_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "apprise", None)
    problems: list[str] = []
    notifier = Notifier(NotifyRules(url_variables=("MY_URL",)), "run", problems.append)
    notifier.notify(alert(), NOON)
    notifier.close()
    assert len(problems) == 1 and "apprise" in problems[0]


def test_rules_from_a_file(tmp_path):
    path = tmp_path / "notifications.toml"
    assert load_rules(path) == NotifyRules()
    path.write_text('minimum = "error"\nrepeat_minutes = 5\nurl_variables = ["A_URL"]\nquiet_hours = "22:00-07:00"\n')
    rules = load_rules(path)
    assert (rules.minimum, rules.repeat_minutes, rules.url_variables) == ("error", 5.0, ("A_URL",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("minimun = 'error'", "minimun"),
        ("minimum = 'loud'", "loud"),
        ("bell = 'yes'", "bell"),
        ("quiet_hours = '25:00-07:00'", "25:00"),
        ("url_variables = ['ntfy://ntfy.sh/secret']", "url_variables"),
        ("minimum = ", "cannot be read"),
        ("per_hour = 1.5", "per_hour"),
    ],
)
def test_bad_files_are_refused_with_the_reason(tmp_path, text, words):
    path = tmp_path / "notifications.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_rules(path)
    assert words in caught.value.message and caught.value.hint
    assert "ntfy.sh/secret" not in caught.value.message
