"""What Bridge's loggers are told of the chosen tracker, and what the check before the start says."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine import settings_file
from engine.run.directory import RunDirectory
from engine.settings import Settings
from engine.workers.trackers import logger_options, open_tracker, tell_bridge
from tests.engine.test_preflight import FACTS, INSTALLED, PACKAGES, SETTINGS, judge


@pytest.fixture(autouse=True)
def no_keys(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", "TRACKIO_SPACE_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def options(tmp_path, tracker: str) -> dict[str, object]:
    chosen = {"output.tracker": tracker, "output.tracker_project": "night shift"}
    return logger_options(Settings().with_values(chosen), RunDirectory(tmp_path / "run-1"))


def test_no_tracker_adds_nothing(tmp_path):
    assert logger_options(Settings(), RunDirectory(tmp_path)) == {}


def test_wandb_without_a_key_writes_an_offline_file(tmp_path, monkeypatch):
    found = options(tmp_path, "wandb")
    assert found["wandb_project"] == "night shift" and found["wandb_exp_name"] == "run-1"
    assert found["wandb_save_dir"] == str(tmp_path / "run-1") and os.environ.pop("WANDB_MODE") == "offline"


@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_wandb_with_a_key_uploads(tmp_path, monkeypatch, place):
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "s3cret")
    else:
        (tmp_path / "netrc").write_text("machine api.wandb.ai login user password s3cret\n")
    found = options(tmp_path, "wandb")
    assert "WANDB_MODE" not in os.environ
    assert "s3cret" not in str(found)


def test_mlflow_writes_into_the_run_unless_a_server_is_named(tmp_path, monkeypatch):
    assert options(tmp_path, "mlflow")["mlflow_log_artifacts"] is False
    assert os.environ.pop("MLFLOW_TRACKING_URI") == f"sqlite:///{tmp_path}/run-1/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    options(tmp_path, "mlflow")
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://tracker:5000"


@pytest.fixture
def night(tmp_path):
    chosen = {"output.tracker": "trackio", "output.tracker_project": "night shift"}
    return Settings().with_values(chosen), RunDirectory(tmp_path / "run-1")


def test_trackio_gets_what_the_records_hold(night, monkeypatch):
    calls = []
    fake = SimpleNamespace(
        init=lambda **options: calls.append(options),
        log=lambda values, step: calls.append((step, values)),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    settings, run = night
    tracker = open_tracker(settings, run)
    assert tracker is not None
    tracker.log(3, {"loss": 2.5, "tflops_per_gpu": None})
    [options, record] = calls
    assert (options["project"], options["name"], options["resume"]) == ("night shift", "run-1", "allow")
    assert options["config"]["output.tracker"] == "trackio"
    assert record == (3, {"loss": 2.5})
    assert os.environ["TRACKIO_DIR"] == str(run.path / "trackio")


def test_trackio_goes_where_the_environment_says(night, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=lambda **options: None))
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    open_tracker(*night)
    assert "TRACKIO_DIR" not in os.environ


def test_bridges_loggers_get_what_bridge_does_not_know():
    calls = []
    state = SimpleNamespace(
        tensorboard_logger=SimpleNamespace(add_scalar=lambda *told: calls.append(told)),
        wandb_logger=SimpleNamespace(log=lambda *told: calls.append(told)),
        mlflow_logger=None,
    )
    tell_bridge(state, 7, {"load_balance": 1.5})
    assert calls == [("load_balance", 1.5, 7), ({"load_balance": 1.5}, 7)]


def test_bridge_is_told_nothing_of_trackio_and_others_open_none(tmp_path, night):
    assert options(tmp_path, "trackio") == {}
    assert open_tracker(Settings(), night[1]) is None


def test_trackio_itself_keeps_the_metrics(night):
    """In a process of its own: Trackio reads where to write when it is imported."""
    pytest.importorskip("trackio")
    settings, run = night
    run.path.mkdir()
    settings_file.save(settings, run.settings)
    program = (
        "import sys; from pathlib import Path; from engine import settings_file; "
        "from engine.run.directory import RunDirectory; from engine.workers.trackers import open_tracker; "
        "run = RunDirectory(Path(sys.argv[1])); tracker = open_tracker(settings_file.load(run.settings), run); "
        "[tracker.log(n, {'loss': 5.0 / n, 'memory_gib': None}) for n in (1, 2, 3)]"
    )
    subprocess.run([sys.executable, "-c", program, str(run.path)], check=True, timeout=300, capture_output=True)
    [database] = (run.path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics where run_name = 'run-1' order by step").fetchall()
    assert [(step, json.loads(metrics)["loss"]) for step, metrics in rows] == [(1, 5.0), (2, 2.5), (3, 5.0 / 3)]


def test_a_tracker_that_is_not_installed_refuses_the_start():
    settings = SETTINGS.with_values({"output.tracker": "wandb"})
    [finding] = judge(settings)
    assert finding.key == "packages.tracker" and "/env/bin/python -m pip install wandb" in finding.fix
    installed = replace(INSTALLED, packages={**PACKAGES, "wandb": "0.31.0"})
    assert judge(settings, facts=replace(FACTS, installed=installed)) == ()
    # What the image holds cannot be seen from here.
    assert judge(settings.with_values({"launch.launcher": "container"})) == ()
