"""Many faults in one run: it finishes, and equals a run that nothing disturbed."""

from __future__ import annotations

import pytest

from engine.run import start
from engine.run.directory import RunDirectory
from engine.run.state import Status
from tests.faults import harness
from tests.faults.chaos import Chaos
from tests.faults.conftest import MakeRun

ITERATIONS = 120


@pytest.fixture(scope="module")
def long_calm(python, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("long")
        patch.setenv("GPTOSS_RUNS", str(root))
        run = harness.make_run(root, python, "calm", ("train",), **{"training.iterations": ITERATIONS})
        (run.path / "pace.json").write_text('{"iteration_s": 0.001, "save_s": 0.01}')
        start.launch(run)
        assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    return run


@pytest.mark.fault("chaos")
@pytest.mark.parametrize(
    ("seed", "faults"),
    [pytest.param(1, 6, id="6-faults"), pytest.param(2, 60, id="60-faults", marks=pytest.mark.faults)],
)
def test_chaos(seed: int, faults: int, make_run: MakeRun, long_calm: RunDirectory) -> None:
    values = {"training.iterations": ITERATIONS, "launch.hang_s": 3, "launch.restarts": 100}
    run = make_run("run", ("train",), {"iteration_s": 0.1}, **values)
    start.launch(run)
    chaos = Chaos(run, harness.losses(long_calm), seed, longest_wait_s=1.5)
    chaos.disturb(faults)
    print(dict(chaos.counts))
    (run.path / "pace.json").unlink()
    chaos.settle()
    assert chaos.counts.total() == faults, "it finished before it had all its faults"
    assert harness.losses(run) == harness.losses(long_calm)
    assert harness.most_repeated(run) <= harness.INTERVAL
    harness.check_nobody_left(run)
