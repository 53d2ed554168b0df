"""A token goes through everything that gptoss does, and is found nowhere afterwards."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import defects, presets, secrets, settings_file
from engine.errors import SettingsError
from engine.findings import Severity
from engine.monitor.alert import Alert
from engine.monitor.notify import Notifier, NotifyRules
from engine.paths import write_atomic
from engine.run import health, start
from engine.run.directory import RunDirectory
from engine.run.reports import Outcome, Verdict
from engine.run.state import Status
from engine.settings import Settings
from gptoss_tui import log_file, log_lines
from gptoss_tui.draft import Draft
from tests.faults import harness
from tests.limits import LIMIT_S

CANARY = "hf_" + "CanaryThatMustNotBeFoundAnywhere" + "0123"
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, in an environment that holds the canary."""
    for name in NAMES:
        monkeypatch.setenv(name, CANARY)
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _holders(root: Path) -> list[str]:
    """The files below `root` that hold the canary."""
    return [str(path) for path in root.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def _told(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "gptoss_tui", *words], capture_output=True, text=True, env=_repo())
    return done.stdout + done.stderr


def _repo() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def _command_lines() -> str:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue
    return "\n".join(lines)


def test_a_token_is_found_nowhere(home: Path) -> None:
    python = harness.interpreter(home)
    assignments = [word for pair in ("launch.launcher=container", "launch.image=nemo") for word in ("--set", pair)]
    told = _told("run", "rehearsal", "--dry-run", "--json")
    told += _told("run", "rehearsal", "--dry-run", *assignments)
    told += _told("export-scripts", "--preset", "rehearsal", "--output", str(home / "scripts"))
    told += _told("doctor")
    run = harness.make_run(home / "runs", python, "run")
    try:
        start.launch(run)
        harness.until(lambda: harness.at_work(run, "train"), "the training")
        rank = harness.ranks_of(run)[0]
        assert CANARY.encode() in Path(f"/proc/{rank.pid}/environ").read_bytes()  # it reaches who needs it
        assert CANARY not in _command_lines()
        assert start.wait(run, LIMIT_S).status is Status.FINISHED
    finally:
        harness.end(run)
    for words in (("runs", "--json"), ("attach", "run", "--headless"), ("logs", "run"), ("report", "run"),
                  ("runs", "--repair")):  # fmt: skip
        told += _told(*words)
    assert "finished" in told and (home / "scripts" / "run.sh").exists()
    assert CANARY not in told
    assert _holders(home) == []


def _value(key: str, value: str) -> dict[str, Any]:
    """A setting as a keyword of `harness.make_run`."""
    return {key: value}


@pytest.mark.parametrize("name", ["settings", "preset", "run"])
def test_a_setting_that_holds_a_token_is_refused(name: str, home: Path) -> None:
    settings = Settings().with_values({"launch.container_options": f"--env HF_TOKEN={CANARY}"})
    with pytest.raises(SettingsError, match="would hold the value of") as refused:
        if name == "settings":
            settings_file.save(settings, home / "gptoss.toml")
        elif name == "preset":
            presets.save("mine", settings)
        else:
            harness.make_run(home / "runs", home, "run", **_value("launch.container_options", f"--env A={CANARY}"))
    assert CANARY not in str(refused.value) + refused.value.hint
    assert _holders(home) == []
    assert not (home / "runs" / "run").exists()


def test_an_env_file_that_holds_a_token_is_refused(home: Path) -> None:
    outside = home / "cluster.env"
    outside.write_text("NCCL_DEBUG=INFO\nWANDB_API_KEY=0123456789abcdef\n")
    with pytest.raises(SettingsError, match="sets WANDB_API_KEY"):
        harness.make_run(home / "runs", home, "run", **_value("launch.env_file", str(outside)))
    assert not (home / "runs" / "run").exists()
    outside.write_text("HF_TOKEN_PATH=/somewhere\nNCCL_DEBUG=INFO\n")
    harness.make_run(home / "runs", harness.interpreter(home), "run", **_value("launch.env_file", str(outside)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hf_" + "a" * 34, "a Hugging Face token"),
        ("x AKIAABCDEFGHIJKLMNOP y", "an AWS key"),
        ("ghp_" + "A1" * 18, "a GitHub token"),
        ("hf_hub_offline = true, hf_short, sk-learn", ""),
        ("launch.python = '/home/me/.venv/bin/python'", ""),
        ("the true value 1", ""),
    ],
)
def test_what_is_a_secret(text: str, found: str) -> None:
    assert secrets.find(text, {"MY_TOKEN": "true", "TOKENIZERS_PARALLELISM": "the true value"}) == found


def test_nobody_else_can_read_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path))
    run = harness.make_run(tmp_path, harness.interpreter(tmp_path), "run", ("prepare",))
    try:
        start.launch(run)
        assert start.wait(run, LIMIT_S).status is Status.FINISHED
    finally:
        harness.end(run)
    assert _mode(run.path) == 0o700
    attempt = run.attempt(1, "prepare")
    for path in (run.environment, run.events, run.supervisor_log, run.lock, attempt / "rank-0.log",
                 attempt / "launcher.log"):  # fmt: skip
        assert _mode(path) == 0o600, path.name


def test_what_a_log_says_is_shown_without_its_secrets(home: Path) -> None:
    """A library printed the token: the log keeps it for its owner, and nothing that leaves the log does."""
    run = harness.make_run(home / "runs", harness.interpreter(home), "run", ("train",))
    attempt = run.attempt(1, "train")
    attempt.mkdir()
    said = f"huggingface_hub.errors.HfHubHTTPError: 401 Client Error for token {CANARY}\nRuntimeError: key {CANARY}\n"
    (attempt / "rank-0.log").write_text(said)
    verdict = Verdict(outcome=Outcome.FAILED, message="rank 0 failed")
    told = health.explain(attempt, verdict, Settings(), run.read_plan())
    run.append_event("alert", f"loss of {CANARY}", evidence=said)
    now = run.read_state()
    write_atomic(run.state, replace(now, status=Status.FAILED, attempt=1, step="train", message=told.message).to_json())
    words = told.message + told.hint
    for command in (("logs", "run"), ("report", "run"), ("report", "run", "--json"), ("diagnose", "run"),
                    ("diagnose", "run", "--json"), ("runs",), ("attach", "run", "--headless"),
                    ("report", "run", "--output", f"{home}/page.html", "--metrics", f"{home}/x.csv")):  # fmt: skip
        words += _told(*command)
    log_lines.export(attempt / "rank-0.log", log_lines.Level.ALL, home / "copy.log")
    words += log_file.readable(said.splitlines()[0])
    assert "401" in words and "[$HF_TOKEN]" in words and CANARY not in words
    assert _holders(home) == [str(attempt / "rank-0.log")]
    assert _mode(home / "copy.log") == 0o600


def test_an_alert_leaves_without_its_secrets(home: Path) -> None:
    script = home / "take.py"
    script.write_text(f"import sys; open({str(home / 'taken')!r}, 'w').write(sys.stdin.read())")
    alert = Alert(
        key="loss.spike",
        severity=Severity.ERROR,
        message=f"m {CANARY}",
        evidence=CANARY,
        cause="c",
        next_step="n",
        t=1.0,
    )
    problems: list[str] = []
    notifier = Notifier(NotifyRules(command=f"{sys.executable} {script}"), "job", problems.append)
    assert notifier.notify(alert, 1_700_000_000.0)
    notifier.close(60)
    assert not problems and "[$HF_TOKEN]" in (home / "taken").read_text()
    assert _holders(home) == []


def test_a_trace_and_a_draft_keep_no_secret(home: Path) -> None:
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        defects.keep_trace()
    [trace] = home.rglob("defects.log")
    assert "RuntimeError: [$" in trace.read_text() and _mode(trace) == 0o600
    draft = Draft()
    draft.save()
    [kept] = home.rglob("*draft*.json")
    assert _mode(kept) == 0o600
    draft.settings = draft.settings.with_values({"launch.container_options": f"--env HF_TOKEN={CANARY}"})
    with pytest.raises(SettingsError, match="the draft would hold"):
        draft.save()
    assert _holders(home) == []


def test_a_secret_that_came_later_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secrets.redact("it is swordfish-1") == "it is swordfish-1"
    monkeypatch.setenv("LATER_PASSWORD", "swordfish-1")
    assert secrets.redact("it is swordfish-1") == "it is [$LATER_PASSWORD]"
    monkeypatch.delenv("LATER_PASSWORD")
    monkeypatch.setenv("OTHER_PASSWORD", "swordfish-1")  # as many variables as before
    assert secrets.redact("it is swordfish-1") == "it is [$OTHER_PASSWORD]"
    assert secrets.redact("hf_" + "a" * 34) == "[a Hugging Face token]"


@pytest.mark.parametrize("value", ['sword"fish', "sword\\fish", "swordfisch-für-uns", "swordfish\\"])
def test_a_record_keeps_no_secret_that_json_spells_otherwise(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASSWORD", value)
    assert json.loads(secrets.redact(json.dumps({"message": f"it is {value}"}))) == {"message": "it is [$A_PASSWORD]"}
    assert secrets.redact(f"it is {value}") == "it is [$A_PASSWORD]"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "x\n", "-x", "a" * 81, "/etc", "\u202e", "a b"])
def test_a_name_stays_within_the_directory(name: str, tmp_path: Path) -> None:
    from engine.errors import RunError
    from engine.run import directory

    with pytest.raises(RunError):
        directory.create(tmp_path / "runs", name)
    assert not list(tmp_path.rglob("*.json"))


def test_a_link_in_the_place_of_a_record_is_not_written_through(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path))
    run: RunDirectory = harness.make_run(tmp_path, harness.interpreter(tmp_path), "run", ("prepare",))
    precious = tmp_path / "precious"
    precious.write_text("precious")
    run.state.replace(tmp_path / "state")
    text = (tmp_path / "state").read_text()
    run.state.symlink_to(precious)
    precious.write_text(text)
    before = precious.read_text()
    try:
        start.launch(run)
        assert start.wait(run, LIMIT_S).status is Status.FINISHED
    finally:
        harness.end(run)
    assert precious.read_text() == before
    assert not run.state.is_symlink() and json.loads(run.state.read_text())["status"] == "finished"
