"""What Bridge's loggers are told of the chosen tracker, and what the check before the start says."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from engine.run.directory import RunDirectory
from engine.settings import Settings
from engine.workers.trackers import logger_options
from tests.engine.test_preflight import FACTS, INSTALLED, PACKAGES, SETTINGS, judge


@pytest.fixture(autouse=True)
def no_keys(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI"):
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


def test_a_tracker_that_is_not_installed_refuses_the_start():
    settings = SETTINGS.with_values({"output.tracker": "wandb"})
    [finding] = judge(settings)
    assert finding.key == "packages.tracker" and "/env/bin/python -m pip install wandb" in finding.fix
    installed = replace(INSTALLED, packages={**PACKAGES, "wandb": "0.31.0"})
    assert judge(settings, facts=replace(FACTS, installed=installed)) == ()
    # What the image holds cannot be seen from here.
    assert judge(settings.with_values({"launch.launcher": "container"})) == ()
