"""A network share that is slow, silent for a while, broken or gone under a run and under what watches it."""

from __future__ import annotations

import errno
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.run import start
from engine.run.directory import RunDirectory
from engine.run.job import processes_of
from engine.run.state import Status
from tests.faults import harness
from tests.faults.conftest import MakeRun
from tests.faults.harness import until
from tests.faults.share import Share, open_share
from tests.faults.terminal import Terminal

TRAIN = ("train",)


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    # What stands for NCCL is memory, on no disk.
    (tmp_path / "memory").mkdir()
    monkeypatch.setenv("FAKE_NETWORK", str(tmp_path / "memory"))
    opened = open_share(tmp_path / "network")
    yield opened
    opened.close()


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def begin(*words: str) -> Terminal:
        opened.append(Terminal(harness.gptoss(*words)))
        return opened[-1]

    yield begin
    for terminal in opened:
        terminal.close()


def _finish(run: RunDirectory, calm: RunDirectory) -> None:
    state = start.wait(run, 3 * harness.LIMIT_S)
    assert state.status is Status.FINISHED, state.message
    assert harness.losses(run) == harness.losses(calm)
    harness.check_nobody_left(run)


@pytest.mark.faults
@pytest.mark.fault("share-slow")
def test_a_slow_share_only_takes_longer(make_run: MakeRun, share: Share, calm: RunDirectory) -> None:
    run = make_run("run", TRAIN, root=share.path)
    share.slow_down(0.01)
    start.launch(run)
    _finish(run, calm)
    assert "restart" not in harness.kinds(run)


@pytest.mark.fault("share-silent")
def test_a_silent_share_is_waited_for(make_run: MakeRun, share: Share, calm: RunDirectory) -> None:
    hang_s = 4
    run = make_run("run", TRAIN, {"iteration_s": 0.1}, root=share.path, **{"launch.hang_s": hang_s})
    start.launch(run)
    until(lambda: run.last_checkpoint() == harness.INTERVAL, "the first checkpoint")
    with share.silence():
        time.sleep(2 * hang_s)
    _finish(run, calm)
    assert "restart" not in harness.kinds(run) and "hang" not in harness.kinds(run)
    assert harness.most_repeated(run) == 0


@pytest.mark.fault("share-screen")
def test_the_screen_answers_while_its_share_is_silent(
    make_run: MakeRun, share: Share, open_terminal: Callable[..., Terminal]
) -> None:
    run = make_run("run", TRAIN, {"iteration_s": 0.3}, root=share.path, **{"training.iterations": 2000})
    start.launch(run)
    until(lambda: len(harness.losses(run)) >= 3, "iterations")
    terminal = open_terminal("attach", "run")
    terminal.wait_for("Detach")
    terminal.wait_for("following")  # its log is there, too
    with share.silence():
        terminal.wait_for("does not answer")
        terminal.press("?")
        terminal.wait_for("In a chart")
        terminal.press("qq")  # out of the help, and out
        assert terminal.wait_end() == 0
    assert run.read_state().observed().status is Status.RUNNING


@pytest.mark.fault("share-list")
def test_the_list_of_runs_says_which_does_not_answer(make_run: MakeRun, share: Share) -> None:
    near = make_run("near", TRAIN)
    far = [make_run(name, TRAIN, root=share.path) for name in ("far", "farther")]
    with share.silence():
        began = time.monotonic()
        done = _gptoss("runs", "--json")
        assert time.monotonic() - began < harness.LIMIT_S
        told = {one["run"]: one for one in json.loads(done.stdout)}
        assert told[near.name]["status"] == "pending"
        for run in far:
            assert told[run.name]["status"] == "unreachable"
            assert "no answer within" in told[run.name]["message"]
        done = _gptoss("attach", "far", "--headless")
        assert done.returncode == 2 and "far gives no answer within" in done.stderr, done.stderr
    assert {one["status"] for one in json.loads(_gptoss("runs", "--json").stdout)} == {"pending"}


@pytest.mark.fault("share-stale")
@pytest.mark.parametrize(
    "number", [pytest.param(errno.ESTALE, id="ESTALE"), pytest.param(errno.EIO, id="EIO", marks=pytest.mark.faults)]
)
def test_a_broken_share_hides_no_other_run_and_is_waited_for(
    number: int, make_run: MakeRun, share: Share, calm: RunDirectory
) -> None:
    make_run("near", TRAIN)
    run = make_run("run", TRAIN, {"iteration_s": 0.1}, root=share.path)
    start.launch(run)
    until(lambda: run.last_checkpoint() == harness.INTERVAL, "the first checkpoint")
    supervisor = harness.supervisor_of(run)
    share.break_down(number)
    until(lambda: not processes_of(run.path), "the ranks to fail")
    done = _gptoss("runs")
    assert "near" in done.stdout and " run " in f" {done.stdout}".replace("\n", " "), done.stderr
    assert supervisor.is_alive()
    share.mend()
    state = start.wait(run, 3 * harness.LIMIT_S)
    assert state.status is Status.FINISHED, state.message
    assert harness.losses(run).items() <= harness.losses(calm).items()  # the records of that time are missing
    harness.check_nobody_left(run)


@pytest.mark.faults
@pytest.mark.fault("disk-quota")
def test_a_quota_that_is_used_up_for_a_while(make_run: MakeRun, share: Share, calm: RunDirectory) -> None:
    run = make_run("run", TRAIN, {"iteration_s": 0.1}, root=share.path, **{"launch.restarts": 20})
    start.launch(run)
    until(lambda: run.last_checkpoint() == harness.INTERVAL, "the first checkpoint")
    share.refuse_writing(errno.EDQUOT)
    time.sleep(3)
    share.mend()
    state = start.wait(run, harness.LIMIT_S)
    if state.status is not Status.FINISHED:
        # It was started again too often meanwhile; `lost` where that could not be written either.
        assert state.status in (Status.FAILED, Status.LOST), state.message
        start.resume(run)
        state = start.wait(run, harness.LIMIT_S)
    assert state.status is Status.FINISHED, state.message
    assert harness.losses(run).items() <= harness.losses(calm).items()  # the records of that time are missing
    harness.check_nobody_left(run)


@pytest.mark.fault("share-gone")
def test_a_share_that_is_unmounted_ends_in_a_clear_state_and_may_come_back(
    make_run: MakeRun, share: Share, calm: RunDirectory
) -> None:
    make_run("near", TRAIN)
    run = make_run("run", TRAIN, {"iteration_s": 0.1}, root=share.path)
    start.launch(run)
    until(lambda: run.last_checkpoint() == harness.INTERVAL, "the first checkpoint")
    share.close()
    until(lambda: not processes_of(run.path), "the ranks to fail")
    told = {one["run"]: one for one in json.loads(_gptoss("runs", "--json").stdout)}
    assert told["near"]["status"] == "pending"
    assert told["run"]["status"] == "unreachable" and "which is not there" in told["run"]["message"]
    assert "mount its disk" in _gptoss("runs", "--repair").stdout
    assert not run.path.exists()  # nothing was made on the mount point
    share.mount()
    state = start.wait(run, 3 * harness.LIMIT_S)
    assert state.status is Status.FINISHED, state.message
    assert harness.losses(run).items() <= harness.losses(calm).items()
    harness.check_nobody_left(run)


def _gptoss(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        harness.gptoss(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=2 * harness.LIMIT_S
    )
