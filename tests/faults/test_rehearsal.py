"""The same faults in a real rehearsal: real torchrun, real Megatron, on the CPU. Part of `make faults` only."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import presets
from engine.machine import detect
from engine.paths import write_atomic
from engine.plan.planner import make_plan
from engine.run import start
from engine.run.directory import RunDirectory
from engine.run.state import Status
from tests.faults import harness
from tests.faults.catalogue import SIGNALS, Signal
from tests.faults.chaos import Chaos
from tests.faults.conftest import heavy_lock
from tests.faults.harness import until
from tests.faults.test_signals import MOMENTS
from tests.limits import LONG_LIMIT_S as LIMIT_S

pytestmark = [pytest.mark.faults, pytest.mark.engine]

ITERATIONS, INTERVAL = 24, 8
SHORT: dict[str, object] = {
    "training.iterations": ITERATIONS,
    "training.checkpoint_interval": INTERVAL,
    "training.evaluation_interval": ITERATIONS,
    "training.warmup_iterations": 2,
    "data.max_megabytes": 0.5,
    "launch.restarts": 3,
    "launch.restart_wait_s": 0,
    "launch.hang_s": 90,  # longer than the silence in which a rank imports Megatron, also on a busy machine
}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunDirectory:
    """A rehearsal that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch, heavy_lock(request.config):
        root = tmp_path_factory.mktemp("rehearsal")
        patch.setenv("GPTOSS_RUNS", str(root))
        settings = presets.find("rehearsal").settings.with_values(SHORT | {"output.directory": str(root)})
        run = start.create(settings, make_plan(settings, detect()), "calm")
        start.launch(run)
        state = start.wait(run, LIMIT_S)
        assert state.status is Status.FINISHED, state.message
    assert len(harness.losses(run)) == ITERATIONS
    return run


@pytest.fixture
def at(calm: RunDirectory, heavy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Makes runs whose steps before a given one are done, and which end with that one."""
    root = tmp_path / "runs"
    root.mkdir()
    monkeypatch.setenv("GPTOSS_RUNS", str(root))
    made: list[RunDirectory] = []

    def make(step: str) -> RunDirectory:
        run = harness.copy(calm, root, step)
        harness.rewind(run, step)
        made.append(run)
        return run

    yield make
    for run in made:
        harness.end(run)


def _cases() -> list[object]:
    chosen = [
        (fault, moment) for moment in MOMENTS for fault in SIGNALS if fault.process != "watcher" or moment == "train"
    ]
    return [
        pytest.param(fault, moment, id=f"{moment}-{fault.key}", marks=pytest.mark.fault(fault.key))
        for fault, moment in chosen
    ]


@pytest.mark.parametrize(("fault", "moment"), _cases())
def test_a_signal(fault: Signal, moment: str, at, calm: RunDirectory) -> None:  # type: ignore[no-untyped-def]
    step = "train" if moment == "save" else moment
    run = at(step)
    start.launch(run)
    watcher = harness.start_watcher(run) if fault.process == "watcher" else None
    try:
        until(lambda: _is_at(run, moment, step), f"the moment {moment}", LIMIT_S)
        _strike(run, fault, watcher)
        state = harness.finish(run, LIMIT_S)
        assert state.status is Status.FINISHED, state.message
    finally:
        if watcher:
            watcher.kill()
            watcher.wait()
    if step == "train":
        assert harness.losses(run) == harness.losses(calm)
        assert harness.most_repeated(run) <= INTERVAL
    result, expected = run.read_state().results[step], calm.read_state().results[step]
    for name in expected:
        if name not in ("peak_memory_gib", "peak_gpu_memory_gib", "seconds"):
            assert result.get(name) == expected[name], name
    harness.check_nobody_left(run)


def _is_at(run: RunDirectory, moment: str, step: str) -> bool:
    if not harness.at_work(run, step):
        return False
    if moment == "save":
        return harness.is_saving(run)
    if moment == "train":
        return max(harness.losses(run), default=0) > INTERVAL
    return any(record.get("kind") == "phase" for record in harness.read_records(run.events))


def _strike(run: RunDirectory, fault: Signal, watcher: subprocess.Popen[bytes] | None) -> None:
    if fault.process == "watcher":
        assert watcher is not None
        watcher.send_signal(fault.number)
        return
    ranks = harness.ranks_of(run)
    target = {"supervisor": harness.supervisor_of(run), "torchrun": harness.launcher_of(run)}.get(
        fault.process, ranks[-1] if ranks else None
    )
    assert target is not None and target.send(fault.number)
    if fault.key == "supervisor-stop":
        until(target.is_frozen, "the supervisor to be frozen")
        target.send(signal.SIGCONT)


@pytest.mark.fault("chaos")
def test_chaos(at, calm: RunDirectory) -> None:  # type: ignore[no-untyped-def]
    run = at("train")
    text = run.settings.read_text().replace("restarts = 3", "restarts = 100")
    write_atomic(run.settings, text)
    start.launch(run)
    chaos = Chaos(run, harness.losses(calm), 3, longest_wait_s=25)
    chaos.disturb(8)
    print(dict(chaos.counts))
    chaos.settle()
    assert harness.losses(run) == harness.losses(calm)
    harness.check_nobody_left(run)
