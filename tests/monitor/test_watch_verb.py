"""`gptoss watch`, `report` and `compare` as a shell sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from engine import settings_file
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.run.directory import RunDirectory
from engine.run.state import State, Status, StepState
from engine.settings import Settings
from gptoss_tui.__main__ import main
from tests.limits import LIMIT_S

CAPTURED = Path(__file__).parent.parent / "captured"
LOG = CAPTURED / "logs" / "megatron-bridge-0.6.2-last-rank.log"
METRICS = (CAPTURED / "rehearsal" / "metrics.jsonl").read_text()


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """A run directory with the rehearsal's records."""
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))

    def make(name: str, status: Status = Status.FINISHED, **values: object) -> RunDirectory:
        run = RunDirectory(tmp_path / "runs" / name)
        run.attempt(1, "train").mkdir(parents=True)
        chosen = {"model.name": "tiny", "training.iterations": 60, "training.checkpoint_interval": 20} | values
        settings_file.save(Settings().with_values(chosen), run.settings)
        steps = (PlannedStep(name="train", ranks_per_node=1, why="test"),)
        run.plan.write_text(Plan(device="cpu", layout=Layout(), ranks_per_node=1, nodes=1, steps=steps).to_json())
        state = State(name=name, status=status, steps=(StepState(name="train", status=status, attempt=1),),
                      step="train", attempt=1)  # fmt: skip
        run.state.write_text(state.to_json())
        run.metrics.write_text(METRICS)
        run.events.write_text((CAPTURED / "rehearsal" / "events.jsonl").read_text())
        return run

    return make


def lines_of(capsys) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture
def shown(monkeypatch):
    """What a terminal would have been shown."""
    calls: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr("gptoss_tui.__main__._is_terminal", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("gptoss_tui.app.run_app", lambda name, **options: calls.append((name, options)) or 0)
    return calls


def test_a_terminal_gets_the_screen(shown, make_run, tmp_path):
    assert main(["watch", str(LOG)]) == 0
    [(name, options)] = shown
    assert name == "watch" and [job.name for job in options["watched"].jobs] == [LOG.name]
    make_run("night")
    assert main(["watch", "night"]) == 0
    assert shown[-1][0] == "monitor" and shown[-1][1]["run"].name == "night"
    assert main(["watch", str(tmp_path / "missing")]) == 4
    assert len(shown) == 2


@pytest.mark.parametrize("option", ["--json", "--no-follow", "--plain"])
def test_lines_where_lines_are_wanted(shown, option, capsys, monkeypatch):
    monkeypatch.setattr("engine.cli.watch._Watching.wait", lambda *_: False)
    assert main(["watch", str(LOG), option]) == 0
    assert capsys.readouterr().out and not shown


def test_a_log_as_json_lines(capsys):
    assert main(["watch", str(LOG), "--json", "--no-follow"]) == 0
    records = lines_of(capsys)
    assert [r["iteration"] for r in records if "loss" in r] == list(range(1, 61))
    assert not [r for r in records if r.get("kind") == "alert"]


def test_alerts_are_among_the_lines(tmp_path, capsys):
    lines = LOG.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "iteration       40/" in line)
    lines[at] = lines[at].replace(lines[at][lines[at].index(" lm loss") : lines[at].index(" loss scale")], "")
    path = tmp_path / "train.log"
    path.write_text("\n".join(lines) + "\n")
    assert main(["watch", str(path), "--json", "--no-follow"]) == 0
    [alert] = [r for r in lines_of(capsys) if r.get("kind") == "alert"]
    assert (alert["key"], alert["iteration"], alert["severity"]) == ("loss.nan", 40, "error")


def test_the_summary_for_a_person(capsys):
    assert main(["watch", str(LOG), "--no-follow"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "iterations  1 to 60", "loss        6.2539 -> 5.1052", "alerts      0",
    ]  # fmt: skip


def test_a_log_that_ends_in_an_error_is_diagnosed(tmp_path, capsys):
    path = tmp_path / "train.log"
    path.write_text(LOG.read_text().split("[after training")[0] + "OSError: [Errno 28] No space left on device\n")
    assert main(["watch", str(path), "--json", "--no-follow"]) == 0
    last = lines_of(capsys)[-1]
    assert (last["kind"], last["key"]) == ("diagnosis", "disk-full")


def test_a_job_that_failed_before_its_first_iteration_is_diagnosed(tmp_path, capsys):
    path = tmp_path / "train.log"
    path.write_text("AssertionError: Bias in Moe is only supported when ETP==1\n")
    assert main(["watch", str(path), "--no-follow"]) == 0
    assert "cannot be split by tensor parallelism" in capsys.readouterr().err


def test_a_run_by_its_name(make_run, capsys):
    make_run("night")
    assert main(["watch", "night", "--no-follow", "--json"]) == 0
    assert len(lines_of(capsys)) == 132
    assert main(["watch", "night", "--no-follow", "--json", "--step", "train"]) == 0
    assert {r["step"] for r in lines_of(capsys)} == {"train"}


def test_a_failed_run_proposes_a_change(make_run, capsys):
    run = make_run("night", Status.FAILED, **{"data.tokenizer": "/other"})
    (run.attempt(1, "train") / "rank-0.log").write_text("IndexError: index out of range in self\n")
    assert main(["watch", "night", "--no-follow", "--json"]) == 0
    last = lines_of(capsys)[-1]
    assert (last["key"], last["edit"], last["is_curable"]) == ("token-range", {"data.tokenizer": ""}, False)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["watch", "/nowhere/at/all", "--no-follow"], 4, "there is no /nowhere/at/all"),
        (["watch", "/proc/self/status", "--no-follow"], 2, "shows no iteration that is known"),
        (["watch", "/proc/self/fdinfo", "--no-follow"], 2, "holds no log"),
        (["report", "nosuchrun"], 4, "nosuchrun"),
    ],
)
def test_bad_input(arguments, code, words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path))
    assert main(arguments) == code
    assert words in capsys.readouterr().err


def test_a_live_log_is_followed_until_it_says_that_it_ended(tmp_path):
    path = tmp_path / "train.log"
    data = LOG.read_text()
    half = data.index(" [2026", len(data) // 2)
    path.write_text(data[:half])
    command = [sys.executable, "-m", "gptoss_tui", "watch", str(path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    first = json.loads(process.stdout.readline())
    with path.open("a") as file:
        file.write(data[half:] + "[after training is done] datetime: 2026-11-22 09:07:20\n")
    with process.stdout:
        records = [first, *map(json.loads, process.stdout)]
    assert [r["iteration"] for r in records if "loss" in r] == list(range(1, 61))
    assert records[-1]["kind"] == "finished" and process.wait(LIMIT_S) == 0


def test_an_interrupt_ends_the_watching(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(LOG.read_text())
    command = [sys.executable, "-m", "gptoss_tui", "watch", str(path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout and process.stdout.readline()
    process.send_signal(2)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130


def test_an_old_silent_log_is_a_stall_at_once(tmp_path):
    path = tmp_path / "train.log"
    path.write_text(LOG.read_text().split("evaluating at iteration 60")[0].rpartition("\n")[0] + "\n")
    hours_ago = time.time() - 7200
    os.utime(path, (hours_ago, hours_ago))
    command = [sys.executable, "-m", "gptoss_tui", "watch", str(path), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    keys = []
    for line in process.stdout:
        record = json.loads(line)
        if record.get("kind") == "alert":
            keys.append(record["key"])
            break
    process.terminate()
    process.communicate(timeout=LIMIT_S)
    assert keys == ["stall"]


def test_the_report_of_a_run(make_run, capsys, tmp_path):
    make_run("night")
    table = tmp_path / "night.csv"
    assert main(["report", "night", "--csv", str(table)]) == 0
    assert capsys.readouterr().out.startswith("# night\n")
    assert len(table.read_text().splitlines()) == 61
    page = tmp_path / "night.md"
    assert main(["report", "night", "--output", str(page)]) == 0
    assert "| checkpoints | 3 |" in page.read_text() and capsys.readouterr().out == ""
    assert main(["report", "night", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["iterations"] == 60
    assert main(["report", "night", "--output", "/proc/none/x"]) == 2


def test_two_runs_compared(make_run, capsys, tmp_path):
    make_run("first")
    make_run("second", **{"training.learning_rate": 2e-4})
    assert main(["compare", "first", "second", "--json", "--rows", "3"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [row["iteration"] for row in facts["rows"]] == [1, 30, 60]
    assert facts["rows"][0]["values"][0] == facts["rows"][0]["values"][1]
    assert facts["settings"] == {"training.learning_rate": [1e-5, 2e-4]}
    assert main(["compare", "first", "second", "--by", "tokens"]) == 0
    assert "training.learning_rate" in capsys.readouterr().out
    assert main(["compare", "first", "--metric", "colour"]) == 2
    assert "tokens_per_s" in capsys.readouterr().err
    picture = tmp_path / "both.svg"
    assert main(["compare", "first", "second", "--by", "time", "--picture", str(picture)]) == 0
    assert picture.read_text().count("stroke-width") == 2


def test_a_page_and_a_picture_of_a_run(make_run, capsys, tmp_path):
    make_run("night")
    assert main(["report", "night", "--output", str(tmp_path / "a.html")]) == 0
    assert "<svg" in (tmp_path / "a.html").read_text()
    assert main(["report", "night", "--picture", str(tmp_path / "a.svg"), "--metric", "grad_norm"]) == 0
    assert "Gradient norm" in (tmp_path / "a.svg").read_text()
    assert main(["report", "night", "--picture", str(tmp_path / "a.svg"), "--metric", "colour"]) == 2
    assert "no run has the metric 'colour'" in capsys.readouterr().err


def test_labels_narrow_the_list_of_runs(make_run, capsys):
    make_run("good")
    make_run("bad")
    assert main(["label", "good", "--add", "keep", "--note", "lr 2e-4 holds"]) == 0
    assert main(["label", "bad", "--archive"]) == 0
    capsys.readouterr()
    assert main(["runs", "--json"]) == 0
    [one] = json.loads(capsys.readouterr().out)
    assert (one["run"], one["tags"], one["note"]) == ("good", ["keep"], "lr 2e-4 holds")
    assert main(["runs", "--archived", "--filter", "BAD"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("bad ")
    assert main(["runs", "--filter", "nothing like it"]) == 0
    assert "none of the 2 runs fits" in capsys.readouterr().err
    assert main(["label", "good", "--remove", "keep", "--no-archive", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tags"] == []
    assert main(["label", "good", "--add", "Bad Tag"]) == 2


def test_the_alerts_of_a_run_are_those_of_its_supervisor(make_run, capsys):
    run = make_run("night")
    spiked = METRICS.replace('"loss": 5.5', '"loss": 55.5')
    assert spiked != METRICS
    run.metrics.write_text(spiked)
    assert main(["watch", "night", "--no-follow", "--json"]) == 0
    assert not [r for r in lines_of(capsys) if r.get("kind") == "alert"]
    told = {"t": 1795338409.0, "key": "loss.spike", "severity": "warning", "message": "the loss jumped",
            "evidence": "from 5 to 55", "cause": "a batch", "next_step": "wait", "iteration": 3}  # fmt: skip
    with run.events.open("a") as file:
        file.write(json.dumps({"kind": "alert", **told}) + "\n" + '{"t": 1.0, "kind": "alert", "message": "odd"}\n')
    assert main(["watch", "night", "--no-follow", "--json"]) == 0
    captured = capsys.readouterr()
    alerts = [r for r in map(json.loads, captured.out.splitlines()) if r.get("kind") == "alert"]
    assert [one["message"] for one in alerts] == ["odd", "the loss jumped"]
    assert "warning: the loss jumped (iteration 3)" in captured.err


def test_a_failure_is_diagnosed_and_the_proposed_change_applied(make_run, capsys, monkeypatch):
    run = make_run("night", Status.FAILED, **{"data.tokenizer": "/other"})
    (run.attempt(1, "train") / "rank-0.log").write_text("IndexError: index out of range in self\n")
    assert main(["diagnose", "night"]) == 0
    told = capsys.readouterr().out
    assert 'change    data.tokenizer: /other -> ""\n' in told
    assert "command   gptoss run --resume night --set data.tokenizer=\n" in told
    asked = []
    monkeypatch.setattr("engine.run.start.resume", lambda run, changes: asked.append((run.name, changes)))
    assert main(["diagnose", "night", "--apply", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"] == [{"setting": "data.tokenizer", "old": "/other", "new": ""}]
    assert asked == [("night", {"data.tokenizer": ""})]


def test_what_the_supervisor_found_is_taken_as_it_stands(make_run, capsys):
    run = make_run("night", Status.FAILED)
    attempt = run.attempt(1, "train")
    (attempt / "rank-0.log").write_text("IndexError: index out of range in self\n")
    assert main(["diagnose", "night", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    del found["changes"], found["command"], found["applied"]
    (attempt / "diagnosis.json").write_text(json.dumps({**found, "cause": "kept", "edit": {}}))
    assert main(["diagnose", "night"]) == 0
    assert "kept" in capsys.readouterr().out
    # The pattern is not curable, and there is nothing to change.
    assert main(["diagnose", "night", "--apply"]) == 2
    (attempt / "diagnosis.json").write_text("damaged")
    assert main(["diagnose", "night"]) == 0


def test_a_run_that_did_not_fail_has_no_cause(make_run, capsys):
    make_run("night")
    assert main(["diagnose", "night"]) == 4
    assert "night is finished and shows no cause" in capsys.readouterr().err


def test_a_failure_that_nobody_knows_is_told_in_its_own_words(make_run, capsys):
    run = make_run("night", Status.FAILED)
    record = {"t": 5.0, "rank": 1, "error": "Odd", "message": "so it is\nand more", "hint": "", "traceback": ""}
    (run.attempt(1, "train") / "error-rank-1.json").write_text(json.dumps(record))
    assert main(["diagnose", "night"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("rank 1: Odd: so it is\n") and "not in the catalogue" in told


def test_a_log_is_printed_whole(make_run, capsys):
    """Beyond one read, with a last line that was never ended, and progress bars as a terminal leaves them."""
    run = make_run("night")
    text = "".join(f"line {number:06}\n" for number in range(150_000)) + "0 %\r50 %\r100 %\n10 of 10\r\nkilled here"
    (run.attempt(1, "train") / "rank-0.log").write_text(text)
    for options in ([], ["--follow"]):
        assert main(["logs", "night", *options]) == 0
        told = capsys.readouterr().out.splitlines()
        assert len(told) == 150_003
        assert told[-4:] == ["line 149999", "100 %", "10 of 10", "killed here"]


def test_a_run_without_an_iteration_is_no_mistake(make_run, capsys):
    run = make_run("night")
    run.metrics.write_text("")
    assert main(["watch", "night", "--no-follow"]) == 0
    assert "night has recorded no iteration yet" in capsys.readouterr().err
    assert main(["compare", "night"]) == 2
    assert "nothing was measured yet" in capsys.readouterr().err


def test_a_table_of_an_unknown_kind_is_refused(make_run, capsys, tmp_path):
    make_run("night")
    assert main(["report", "night", "--metrics", str(tmp_path / "x.json")]) == 2
    assert "let it end in .csv or .parquet" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


def test_a_step_that_was_never_started_is_not_explained_by_the_one_before(make_run, capsys):
    run = make_run("night", Status.FAILED)
    state = run.read_state()
    (run.attempt(1, "train") / "rank-0.log").write_text("IndexError: index out of range in self\n")
    finished = state.with_step("train", status=Status.FINISHED)
    run.state.write_text(replace(finished, message="machine.hosts names no host (name some)").to_json())
    assert main(["diagnose", "night"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("machine.hosts names no host (name some)\n") and "could not start a step" in told
