"""The command line as a program: output, errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli.facts import settings_page
from gptoss_tui.__main__ import main
from tests.limits import LIMIT_S

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def gptoss(tmp_path):
    """Run `gptoss ARGUMENTS` without a terminal and in an empty home."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "GPTOSS_", "HF_"))
    } | {"HOME": str(tmp_path), "GPTOSS_RUNS": str(tmp_path / "runs")}

    def call(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gptoss_tui", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=environment | extra,
            timeout=LIMIT_S,
        )

    return call


def test_version_and_help(gptoss):
    assert gptoss("--version").stdout.startswith("gptoss 0.")
    helped = gptoss("--help")
    assert helped.returncode == 0
    assert "exit codes" in helped.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["run", "rehersal"], 4, "there is no preset 'rehersal'", "did you mean rehearsal?"),
        (
            ["quickstart", "rehearsal", "--set", "training.iteration=1"],
            2,
            "there is no setting",
            "training.iterations?",
        ),
        (["run"], 2, "no preset was named", "gptoss presets"),
        (["run", "/nowhere/gptoss.toml"], 4, "there is no file", "gptoss presets"),
        (["run", "--resume", "nothing"], 4, "there is no run 'nothing'", "gptoss runs"),
        (["attach", "nothing"], 4, "there is no run", "gptoss runs"),
        (["stop"], 4, "there is no run in", "gptoss quickstart"),
        (["kill", "nothing"], 4, "there is no run", "gptoss runs"),
        (["logs"], 4, "there is no run in", "gptoss quickstart"),
        (["settings", "explain", "training.lr"], 2, "there is no setting", ""),
        (["presets", "show", "nothing"], 4, "there is no preset", "there are:"),
        (["new"], 2, "nobody to ask", "gptoss new --plain"),
    ],
)
def test_an_error_names_the_next_step_and_has_its_exit_code(gptoss, arguments, code, message, hint):
    done = gptoss(*arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", LONG], 2, "File name too long"),
        (["attach", LONG], 4, "there is no run"),
        (["checkpoint", "inspect", LONG], 2, "File name too long"),
        (["doctor", "--save-machine", "/nowhere/m.toml"], 2, "/nowhere/m.toml: No such file or directory"),
        (["doctor", "--save-machine", "a directory"], 2, "a directory: Is a directory"),
        (["presets", "save", "mine"], 2, ".config"),
        (["--machine", "a directory", "plan"], 2, "a directory cannot be read: Is a directory"),
        (["run", "long.toml"], 2, "long.toml is not TOML"),
        (["run", "deep.toml"], 2, "deep.toml is not TOML"),
        (["--machine", "long.toml", "plan"], 2, "long.toml: this is not TOML"),
        (["run", "rehearsal", "--name", "a b", "--dry-run"], 2, "'a b' cannot name a run"),
    ],
)
def test_what_the_system_refuses_is_told_without_a_trace(arguments, code, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "a directory").mkdir()
    (tmp_path / "long.toml").write_text("[training]\niterations = " + "9" * 4_400)
    (tmp_path / "deep.toml").write_text("a = " + "[" * 40_000)
    monkeypatch.setenv("HOME", "/proc/self")
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    told = capsys.readouterr().err
    assert message in told and "defect" not in told and "unexpected" not in told


def test_several_problems_stand_below_each_other(tmp_path, capsys):
    (tmp_path / "bad.toml").write_text('zzz = 1\n[training]\nseed = "x"\niteratons = 3\n')
    assert main(["run", str(tmp_path / "bad.toml")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all(line.startswith("        ") for line in told[1:])


def test_output_that_cannot_be_written_or_encoded(gptoss):
    """A full disk is an error, a reader that leaves is none, and another encoding costs single letters."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gptoss_tui", "presets", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "Exception ignored" not in done.stderr
    done = gptoss("doctor", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "core" in done.stdout and "unexpected" not in done.stderr
    line = f"{sys.executable} -m gptoss_tui settings list --json | head -1; echo ${{PIPESTATUS[0]}}"
    piped = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=ROOT)
    assert piped.stdout.split() == ["[", "0"] and piped.stderr == ""


def test_without_a_terminal_and_a_verb_it_explains_itself(gptoss):
    done = gptoss()
    assert done.returncode == 2
    assert "usage: gptoss" in done.stdout


def test_presets_as_json_is_a_list(gptoss):
    names = [preset["name"] for preset in json.loads(gptoss("presets", "--json").stdout)]
    assert names[0] == "rehearsal"


def test_a_user_preset_comes_first_and_a_broken_one_spoils_nothing(gptoss, tmp_path):
    mine = tmp_path / ".config" / "gptoss" / "presets"
    mine.mkdir(parents=True)
    (mine / "mine.toml").write_text('title = "My run"\n[training]\niterations = 7\n')
    (mine / "broken.toml").write_text("[training\n")
    names = [preset["name"] for preset in json.loads(gptoss("presets", "--json").stdout)]
    assert "mine" in names and "broken" not in names
    shown = json.loads(gptoss("presets", "show", "mine", "--json").stdout)
    assert shown["changed"] == {"training": {"iterations": 7}}


def test_a_dry_run_prints_the_commands_and_starts_nothing(gptoss, tmp_path):
    done = gptoss("run", "rehearsal", "--dry-run", "--name", "trial")
    assert done.returncode == 0, done.stderr
    for step in ("prepare", "convert", "train", "export", "verify"):
        assert f"engine.workers.{step}" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_settings_are_listed_and_explained(gptoss):
    keys = [option["key"] for option in json.loads(gptoss("settings", "--json").stdout)]
    assert "training.learning_rate" in keys
    assert "optimizer.lr" in gptoss("settings", "explain", "training.learning_rate").stdout


def test_settings_takes_a_key_only_to_explain_it(gptoss):
    done = gptoss("settings", "list", "training.seed")
    assert done.returncode == 2 and "gptoss settings explain training.seed" in done.stderr
    assert json.loads(gptoss("settings", "page", "--json").stdout)["page"].startswith("# Settings")


def test_the_settings_page_is_up_to_date():
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_for_the_shell(gptoss, shell):
    done = gptoss("completion", shell)
    assert done.returncode == 0
    assert "quickstart" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_runs_is_empty_at_first(gptoss):
    done = gptoss("runs", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == []


def test_a_read_only_place_is_refused(gptoss, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = gptoss("run", "rehearsal", "--headless", "--force", "--set", f"output.directory={blocked}")
    assert done.returncode in (2, 3), done.stderr
    assert str(blocked) in done.stderr
    assert "Traceback" not in done.stderr
