"""Runs of a FakePython, and the real things: a Slurm cluster, a container image, two hosts with sshd."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import RunError
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.run import start
from engine.run.directory import RunDirectory
from engine.settings import Settings
from tests.launch import real_hosts, real_podman, real_slurm
from tests.launch.support import FAKES, until


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RunDirectory]]:
    """Create a run of one FakePython training step; every process of it is ended afterwards."""
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path / "runs"))
    made: list[RunDirectory] = []

    def make(actions: list[str], nodes: int = 1, **values: object) -> RunDirectory:
        common = {"model.name": "tiny", "launch.python": str(FAKES / "fake_python.py"), "launch.restarts": 1}
        settings = Settings().with_values({**common, "launch.restart_wait_s": 0, **values})
        steps = (PlannedStep(name="train", ranks_per_node=1, why="test"),)
        plan = Plan(device="cpu", layout=Layout(dp=nodes), ranks_per_node=1, nodes=nodes, steps=steps)
        run = start.create(settings, plan, "mine")
        (run.path / "script.json").write_text(json.dumps({"train": actions}))
        made.append(run)
        return run

    yield make
    for run in made:
        try:
            supervisor = run.read_state().supervisor
        except RunError:
            continue
        if supervisor and supervisor.send(signal.SIGQUIT):
            until(lambda supervisor=supervisor: not supervisor.is_alive())


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration file of a running cluster."""
    with real_slurm.cluster(tmp_path_factory.mktemp("slurm")) as configuration:
        yield configuration


@pytest.fixture
def slurm(slurm_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster))
    return slurm_cluster


@pytest.fixture(scope="session")
def podman_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_podman.Image]:
    """An image that holds nothing and sees this machine's own files."""
    with real_podman.image(tmp_path_factory.mktemp("podman")) as made:
        yield made


@pytest.fixture(scope="session")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_hosts.Hosts]:
    """Two network namespaces with sshd, and an ssh that knows them."""
    with real_hosts.hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made
