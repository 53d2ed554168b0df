"""Runs of FakeTraining for the fault suite, one of which is never disturbed; the record of what passed."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.plan.plan import STEP_NAMES
from engine.run import start
from engine.run.directory import RunDirectory
from engine.run.state import Status
from tests.faults import harness
from tests.faults.catalogue import BY_KEY
from tests.faults.table import RECORD, note

type MakeRun = Callable[..., RunDirectory]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="run the full tier of the fault suite as well")
    parser.addoption("--record-faults", action="store_true", help=f"note what passed in {RECORD.name}")
    parser.addoption("--heavy-lock", help="a file to lock while a rehearsal runs, on a machine shared with other work")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The full tier only runs when asked for."""
    if not config.getoption("--faults", default=False):
        left_out = [item for item in items if "faults" in item.keywords and item.get_closest_marker("faults")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        for mark in item.iter_markers("fault"):
            assert mark.args[0] in BY_KEY, f"{item.nodeid}: {mark.args[0]} is not in the catalogue"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    is_told = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
    if is_told and item.config.getoption("--record-faults", default=False):
        for mark in item.iter_markers("fault"):
            tier = "rehearsal" if "engine" in item.keywords else "double"
            note(mark.args[0], tier, item.name, report.outcome)
    return report


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter that is FakeTraining."""
    return harness.interpreter(tmp_path_factory.mktemp("double"))


@contextmanager
def heavy_lock(config: pytest.Config) -> Iterator[None]:
    """The machine to ourselves."""
    path = config.getoption("--heavy-lock", default=None)
    if not path:
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture
def heavy(request: pytest.FixtureRequest) -> Iterator[None]:
    with heavy_lock(request.config):
        yield


@pytest.fixture(scope="session")
def calm(python: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("calm")
        patch.setenv("GPTOSS_RUNS", str(root))
        run = harness.make_run(root, python, "calm")
        start.launch(run)
        assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    harness.check_whole(run, run)
    assert harness.most_repeated(run) == 0
    return run


@pytest.fixture
def make_run(python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRun]:
    """Makes runs of FakeTraining; every process of theirs is ended afterwards."""
    root = tmp_path / "runs"
    root.mkdir()
    monkeypatch.setenv("GPTOSS_RUNS", str(root))
    made: list[RunDirectory] = []

    def make(
        name: str = "run", names: tuple[str, ...] = STEP_NAMES, pace: dict[str, float] | None = None, **values: object
    ) -> RunDirectory:
        place = Path(str(values.pop("root", root)))
        run = harness.make_run(place, python, name, names, **{"launch.hang_s": 0} | values)
        if pace:
            (run.path / "pace.json").write_text(json.dumps(pace))
        made.append(run)
        return run

    yield make
    for run in made:
        harness.end(run)
