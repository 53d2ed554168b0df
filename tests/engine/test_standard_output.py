"""`-` in place of a file that is to be written: standard output gets that and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import machine_file, presets, settings_file
from engine.cli.parser import build
from engine.errors import ExitCode
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.run import start
from engine.settings import Settings
from gptoss_tui.__main__ import main

FILES = {"--output", "--metrics", "--picture", "--save-machine", "file"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with a run called `night` elsewhere."""
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))
    steps = (PlannedStep(name="train", ranks_per_node=1, why="test"),)
    plan = Plan(device="cpu", layout=Layout(), ranks_per_node=1, nodes=1, steps=steps)
    run = start.create(Settings().with_values({"model.name": "tiny"}), plan, "night")
    run.metrics.write_text('{"t": 1, "step": "train", "iteration": 1, "loss": 2.5}\n' * 2)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["presets", "share", "rehearsal", "-"], "version = 1\ntitle = "),
        (["new", "rehearsal", "--no-input", "--output", "-"], "version = 1\n\n[model]"),
        (["report", "night", "--output", "-"], "# night"),
        (["report", "night", "--metrics", "-"], "iteration"),
        (["report", "night", "--picture", "-"], "<svg"),
        (["compare", "night", "night", "--picture", "-"], "<svg"),
    ],
)
def test_a_file_goes_to_standard_output_alone(words, begins, place, capsys):
    assert main(words) == ExitCode.DONE
    written = capsys.readouterr().out
    assert written.startswith(begins)
    assert "wrote" not in written
    assert list(place.iterdir()) == []


def test_what_was_written_is_read_again(place, capsys):
    for words in (["presets", "share", "rehearsal", "-"], ["new", "rehearsal", "--no-input", "--output", "-"]):
        assert main(words) == ExitCode.DONE
        (place / "taken.toml").write_text(capsys.readouterr().out)
        assert presets.find(str(place / "taken.toml")).settings == presets.find("rehearsal").settings


def test_an_imported_script_becomes_a_settings_file(place, capsys):
    (place / "job.env").write_text("GPUS_PER_NODE=8\nNUM_NODES=2\n")
    assert main(["import", "job.env", "--output", "-"]) == ExitCode.DONE
    told = capsys.readouterr()
    (place / "taken.toml").write_text(told.out)
    assert settings_file.load(place / "taken.toml").machine.nodes == 2
    assert "understood" in told.err


def test_a_machine_file_is_all_that_doctor_prints_then(place, capsys):
    main(["doctor", "--save-machine", "-"])
    told = capsys.readouterr()
    (place / "m.toml").write_text(told.out)
    assert machine_file.load(place / "m.toml").cpu_cores
    assert told.err


@pytest.mark.parametrize(
    "words",
    [
        ["report", "night", "--metrics", "-", "--picture", "-"],
        ["report", "night", "--output", "-", "--json"],
        ["compare", "night", "night", "--picture", "-", "--json"],
        ["presets", "share", "rehearsal", "-", "--json"],
        ["new", "rehearsal", "--no-input", "--output", "-", "--dry-run"],
        ["doctor", "--save-machine", "-", "--json"],
    ],
)
def test_standard_output_holds_one_thing(words, place, capsys):
    assert main(words) == ExitCode.BAD_INPUT
    told = capsys.readouterr()
    assert told.out == "" and "standard output (-) can hold one thing only" in told.err


@pytest.mark.parametrize(
    "words",
    [
        ["export-scripts", "--preset", "rehearsal", "--output", "-"],
        ["data", "prepare", "words.txt", "--output", "-"],
        ["convert", "here", "-"],
        ["export", "here", "-"],
    ],
)
def test_a_directory_cannot_be_standard_output(words, place, capsys):
    (place / "words.txt").write_text("one two three\n")
    before = sorted(place.iterdir())
    assert main(words) in (ExitCode.BAD_INPUT, ExitCode.NOT_FOUND)
    assert sorted(place.iterdir()) == before


def test_no_option_that_takes_a_file_to_write_was_forgotten():
    """A new one is to be added to FILES, to take `-`, and to be tried above."""
    found: set[str] = set()
    waiting = [build()]
    while waiting:
        for action in waiting.pop()._actions:
            if isinstance(action.choices, dict):
                waiting += action.choices.values()
            elif action.metavar == "FILE" and "writ" in str(action.help):
                found.add(action.option_strings[0] if action.option_strings else action.dest)
    assert found == FILES
