"""Damaged files of a run: nothing whole is lost by them, and what cannot be read says so."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from engine import settings_file
from engine.checkpoints import training
from engine.errors import EngineError, LaunchError, RunError
from engine.paths import write_atomic
from engine.processes import ProcessId
from engine.run import repair, rotation, start
from engine.run.directory import RunDirectory, end_half_line, read_records
from engine.run.health import Health
from engine.run.oversight import Oversight
from engine.run.state import Status
from engine.run.supervisor import Supervisor
from engine.settings import Settings
from tests.faults import harness
from tests.faults.conftest import MakeRun

NONSENSE = b'\x00\xff{"version": [[[\n= = =\n'


@pytest.fixture
def stopped(make_run: MakeRun, calm: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A run as it is after its checkpoint of iteration 12, with a newer one (13) to be damaged."""
    run = make_run("run", ("train",))
    shutil.copytree(calm.checkpoints, run.checkpoints)
    shutil.rmtree(training.directory(run.checkpoints, harness.ITERATIONS))
    shutil.copytree(training.directory(run.checkpoints, 12), training.directory(run.checkpoints, 13))
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("13")
    lines = [line for line in calm.metrics.read_text().splitlines() if json.loads(line)["iteration"] <= 12]
    run.metrics.write_text("\n".join(lines) + "\n")
    return run


def _resume(run: RunDirectory) -> list[str]:
    """Go on with the run to its end; return its warnings."""
    start.resume(run)
    state = start.wait(run, harness.LIMIT_S)
    assert state.status is Status.FINISHED, state.message
    return harness.messages(run, "warning")


@pytest.mark.fault("checkpoint-cut-off")
def test_a_checkpoint_that_is_cut_off_is_put_aside(stopped: RunDirectory, calm: RunDirectory) -> None:
    part = stopped.checkpoints / "iter_0000013" / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-1000])
    [warning] = _resume(stopped)
    assert "iteration 13" in warning and "is cut off" in warning
    assert (stopped.checkpoints / "damaged-iter_0000013").is_dir()
    assert harness.losses(stopped) == harness.losses(calm)


@pytest.mark.fault("checkpoint-unfinished")
def test_a_checkpoint_that_was_never_finished_is_deleted(stopped: RunDirectory, calm: RunDirectory) -> None:
    (stopped.checkpoints / "iter_0000013" / ".metadata").unlink()
    [warning] = _resume(stopped)
    assert "was never finished" in warning
    assert not list(stopped.checkpoints.glob("*iter_0000013"))
    assert harness.losses(stopped) == harness.losses(calm)


@pytest.mark.fault("checkpoint-tracker")
def test_a_damaged_tracker_is_written_anew(stopped: RunDirectory, calm: RunDirectory) -> None:
    shutil.rmtree(stopped.checkpoints / "iter_0000013")
    (stopped.checkpoints / "latest_checkpointed_iteration.txt").write_bytes(NONSENSE)
    assert _resume(stopped) == []
    assert harness.losses(stopped) == harness.losses(calm)


@pytest.mark.fault("rotation")
def test_the_last_good_checkpoint_outlives_damaged_newer_ones(stopped: RunDirectory) -> None:
    shutil.copytree(stopped.checkpoints / "iter_0000012", stopped.checkpoints / "iter_0000006")
    for iteration in (13, 14):
        damaged = stopped.checkpoints / f"iter_{iteration:07d}"
        shutil.copytree(stopped.checkpoints / "iter_0000012", damaged, dirs_exist_ok=True)
        (damaged / "__0_0.distcp").write_bytes(b"")
    settings = settings_file.load(stopped.settings).with_values({"output.keep_checkpoints": 1})
    assert rotation.rotate(stopped, settings) == [6]
    assert training.newest_whole(stopped.checkpoints) == 12


@pytest.mark.fault("state-damaged")
@pytest.mark.parametrize("by", ["resume", "repair"])
def test_a_damaged_state_is_rebuilt(by: str, calm: RunDirectory, make_run: MakeRun, tmp_path: Path) -> None:
    make_run("other")
    run = harness.copy(calm, tmp_path / "runs", "copy")
    run.state.write_bytes(NONSENSE)
    if by == "repair":
        told = repair.repair_all(tmp_path / "runs")["copy"]
        assert any("rebuilt from its attempts" in sentence for sentence in told)
        assert run.state.with_name("state.json.damaged").read_bytes() == NONSENSE
        assert repair.repair_all(tmp_path / "runs") == {}
    state = start.readable_state(run)
    assert all(step.status is Status.FINISHED for step in state.steps)
    with pytest.raises(RunError, match="has finished"):
        start.resume(run)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        pytest.param("settings.toml", b"= = =\n", "is not TOML", marks=pytest.mark.fault("settings-damaged")),
        pytest.param("settings.toml", b"", "is empty", marks=pytest.mark.fault("settings-damaged")),
        pytest.param("settings.toml", bytes(4096), "is not TOML", marks=pytest.mark.fault("settings-damaged")),
        pytest.param("plan.json", b"= = =\n", "plan.json is damaged", marks=pytest.mark.fault("plan-damaged")),
        pytest.param("plan.json", b"", "plan.json is damaged", marks=pytest.mark.fault("plan-damaged")),
    ],
)
def test_what_cannot_be_read_is_said(name: str, content: bytes, text: str, make_run: MakeRun) -> None:
    run = make_run("run", ("train",))
    (run.path / name).write_bytes(content)
    with pytest.raises(EngineError, match=text):
        start.resume(run)
    with pytest.raises(LaunchError, match=text):
        start.launch(run)
    harness.check_nobody_left(run)


@pytest.mark.fault("metrics-damaged")
def test_damaged_records_are_left_out(stopped: RunDirectory, calm: RunDirectory) -> None:
    absurd = [NONSENSE, b"[" * 100_000, b"\n", b'{"t": "now", "iteration": "x", "loss": []}\n',
              b'{"t": 1e999, "iteration": 1e999, "loss": NaN}\n', b'{"kind": {}, "t": null}\n', b"9" * 10_000,
              b'\n{"t": 1, "step": "train", "iteration": 13, "lo']  # fmt: skip
    for path in (stopped.metrics, stopped.events):
        with path.open("ab") as file:
            file.write(b"".join(absurd))
    shutil.rmtree(stopped.checkpoints / "iter_0000013")
    _resume(stopped)
    good = {i: loss for i, loss in harness.losses(stopped).items() if isinstance(i, int) and isinstance(loss, float)}
    assert good == harness.losses(calm)


@pytest.mark.fault("power-loss")
def test_after_a_power_cut_the_last_whole_checkpoint_is_used(stopped: RunDirectory, calm: RunDirectory) -> None:
    """What was written last and never reached the disk: files without content, and records that are zeros."""
    for path in training.directory(stopped.checkpoints, 13).iterdir():
        path.write_bytes(b"")
    (stopped.checkpoints / "latest_checkpointed_iteration.txt").write_bytes(b"")
    stopped.state.write_bytes(b"")
    for records in (stopped.metrics, stopped.events):
        with records.open("ab") as file:
            file.write(bytes(4096))
    [warning] = _resume(stopped)
    assert "iteration 13" in warning
    assert harness.losses(stopped) == harness.losses(calm)


def test_health_reads_past_damaged_records(make_run: MakeRun) -> None:
    run = make_run()
    health = Health(run, Settings(), print)
    run.metrics.write_bytes(NONSENSE + b'{"t": "now", "iteration": 3}\n{"t": 5, "iteration": 4, "loss": 1e999}\n')
    health.look(is_training=True)
    health.close()
    assert health.iteration == 4


def test_a_half_line_costs_no_second_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    end_half_line(path)
    assert not path.exists()
    path.write_text('{"iteration": 1}\n{"iterat')
    end_half_line(path)
    with path.open("a") as file:
        file.write('{"iteration": 2}\n')
    end_half_line(path)
    assert [record["iteration"] for record in read_records(path)] == [1, 2]
    assert path.read_bytes().count(b"\n") == 3


@pytest.mark.fault("newer-version")
@pytest.mark.parametrize("name", ["state.json", "plan.json", "settings.toml"])
def test_a_newer_run_is_refused_and_left_as_it_is(name: str, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    text = (run.path / name).read_text()
    newer = text.replace('"version": 1', '"version": 999').replace("version = 1\n", "version = 999\n")
    assert newer != text
    (run.path / name).write_text(newer)
    with pytest.raises(EngineError, match="newer gptoss"):
        start.resume(run)
    repair.repair_all(tmp_path / "runs")
    assert (run.path / name).read_text() == newer
    assert not list(run.attempts.iterdir())


def test_repair_passes_over_what_is_no_run(make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "a file").write_text("mine")
    assert repair.repair_all(tmp_path / "runs") == {}
    assert repair.repair_all(tmp_path / "nowhere") == {}


def test_repair_frees_the_name_of_a_run_that_was_hardly_made(make_run: MakeRun, tmp_path: Path) -> None:
    make_run()
    root = tmp_path / "runs"
    for name in ("young", "old", "mine"):
        (root / name / "attempts").mkdir(parents=True)
    (root / "old" / "settings.toml").touch()
    (root / "mine" / "notes.txt").touch()
    for name in ("old", "mine"):
        os.utime(root / name, (1e9, 1e9))
    with pytest.raises(RunError, match="is there already and is no run"):
        make_run("old")
    assert list(repair.repair_all(root)) == ["old"]
    assert sorted(path.name for path in root.iterdir()) == ["mine", "run", "young"]
    make_run("old")


def test_repair_settles_a_run_whose_starter_died(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    gone = ProcessId(pid=1, start_ticks=1, boot_id="another boot")
    write_atomic(run.state, replace(run.read_state(), starter=gone).to_json())
    assert "its supervisor was lost during the start" in repair.repair_all(tmp_path / "runs")["run"][0]
    assert run.read_state().status is Status.STOPPED
    assert repair.repair_all(tmp_path / "runs") == {}


def test_a_mistake_in_what_watches_ends_no_training(
    make_run: MakeRun, calm: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("run", ("train",))
    supervisor = Supervisor(run)
    monkeypatch.setattr(supervisor.health, "look", lambda **_: 1 / 0)
    monkeypatch.setattr(Oversight, "look", lambda _: 1 / 0)
    assert supervisor.carry_out() is Status.FINISHED
    supervisor._update(supervisor=None)  # it is this very process
    assert harness.losses(run) == harness.losses(calm)


def test_resuming_a_run_without_a_plan_says_so(make_run: MakeRun) -> None:
    run = make_run()
    run.state.unlink()
    run.plan.unlink()
    with pytest.raises(RunError, match="is not a run"):
        start.resume(run)
