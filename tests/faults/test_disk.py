"""A disk that is full, read-only or gone. Real file systems: small ones in memory, which takes root to mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import LaunchError, RunError
from engine.run import start
from engine.run.directory import RunDirectory
from engine.run.state import Status
from tests.faults import harness
from tests.faults.conftest import MakeRun
from tests.faults.harness import until

TRAIN = ("train",)
RANK_BYTES = 5 << 19
"""What each rank of the double writes into a checkpoint here: 5 MiB in all, about what the tiny model takes."""

type Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system of a given size."""
    mounted: list[Path] = []

    def make(size: str) -> Path:
        if os.geteuid():
            pytest.skip("mounting a small file system takes root")
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]).returncode:
            pytest.skip("this machine lets nobody mount a tmpfs")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _fill(place: Path, *, spare: int = 0) -> Path:
    """Take all the room of a disk but `spare` bytes; return the file that does."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        file.write(bytes(max(0, shutil.disk_usage(place).free - spare)))
    return filler


def _finish(run: RunDirectory, calm: RunDirectory) -> None:
    state = start.wait(run, harness.LIMIT_S)
    assert state.status is Status.FINISHED, state.message
    assert harness.losses(run) == harness.losses(calm)
    harness.check_nobody_left(run)


@pytest.mark.fault("disk-full-create")
def test_a_run_is_not_made_on_a_full_disk(make_run: MakeRun, mount: Mount) -> None:
    disk = mount("64k")
    _fill(disk)
    with pytest.raises(RunError, match="cannot be"):
        make_run(root=disk)


@pytest.mark.fault("disk-full-save")
def test_it_ends_before_a_save_that_has_no_room(make_run: MakeRun, mount: Mount, calm: RunDirectory) -> None:
    disk = mount("24m")
    run = make_run("run", TRAIN, {"rank_bytes": RANK_BYTES, "iteration_s": 0.7}, root=disk)
    start.launch(run)
    until(lambda: run.last_checkpoint() == harness.INTERVAL, "the first checkpoint")
    filler = _fill(disk, spare=RANK_BYTES)
    state = start.wait(run, harness.LIMIT_S)
    assert state.status is Status.FAILED
    assert f"no room for the checkpoint of iteration {2 * harness.INTERVAL}" in state.message
    assert f"the last one is of iteration {harness.INTERVAL}" in state.message
    assert not harness.is_saving(run)
    assert "restart" not in harness.kinds(run)
    filler.unlink()
    (run.path / "pace.json").unlink()
    start.resume(run)
    _finish(run, calm)


@pytest.mark.fault("disk-room-made")
def test_an_older_checkpoint_makes_room_for_the_next(make_run: MakeRun, mount: Mount, calm: RunDirectory) -> None:
    disk = mount("13m")
    run = make_run("run", TRAIN, {"rank_bytes": RANK_BYTES, "iteration_s": 0.4}, root=disk)
    start.launch(run)
    _finish(run, calm)
    assert run.last_checkpoint() == harness.ITERATIONS


@pytest.mark.fault("disk-full-step")
def test_a_full_disk_fails_a_step_with_its_reason(make_run: MakeRun, mount: Mount) -> None:
    disk = mount("6m")  # the copy of `engine` for the run takes 2 MB of it
    run = make_run("run", ("prepare",), {"step_s": 2}, root=disk, **{"launch.restarts": 1})
    start.launch(run)
    until(lambda: (run.path / ".data.partial").exists(), "the first file")
    filler = _fill(disk)
    state = start.wait(run, harness.LIMIT_S)
    assert state.status in (Status.FAILED, Status.LOST)  # `lost` where the state could not be written either
    filler.unlink()
    log = run.supervisor_log.read_text()
    assert "No space left on device" in log or "No space left on device" in state.message
    harness.check_nobody_left(run)
    start.resume(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert sorted(path.name for path in run.data.iterdir()) == [f"part-{part}" for part in range(4)]


@pytest.mark.fault("disk-full-records")
def test_the_supervisor_outlives_a_full_disk(make_run: MakeRun, mount: Mount, calm: RunDirectory) -> None:
    disk = mount("16m")
    values = {"training.iterations": 8000, "training.checkpoint_interval": 8000}
    run = make_run("run", TRAIN, {"iteration_s": 0.01}, root=disk, **values)
    start.launch(run)
    until(lambda: len(harness.losses(run)) >= 3, "iterations")
    written, ranks = run.read_state().heartbeat, harness.ranks_of(run)
    filler = _fill(disk)
    time.sleep(2.5)
    assert run.read_state().heartbeat < written + 2.5  # the full disk was met
    filler.unlink()
    until(lambda: run.read_state().heartbeat > written + 2.5, "the state to be written again")
    assert harness.ranks_of(run) == ranks
    start.stop(run)
    assert start.wait(run, harness.LIMIT_S).status is Status.STOPPED
    assert run.last_checkpoint() == max(harness.losses(run))
    assert len(harness.losses(run)) < max(harness.losses(run))  # the records of that time are missing
    assert harness.losses(run).items() >= {i: x for i, x in harness.losses(calm).items() if i < 4}.items()


@pytest.mark.fault("read-only")
def test_a_read_only_directory_is_said(make_run: MakeRun, mount: Mount, calm: RunDirectory) -> None:
    disk = mount("6m")
    run = make_run("run", TRAIN, root=disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(LaunchError, match="cannot be written: Read-only file system"):
        start.launch(run)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    start.launch(run)
    _finish(run, calm)


@pytest.mark.fault("directory-gone")
def test_a_directory_that_vanishes_is_waited_for(make_run: MakeRun, calm: RunDirectory) -> None:
    run = make_run("run", TRAIN)
    start.launch(run)
    until(lambda: run.last_checkpoint() == harness.INTERVAL, "the first checkpoint")
    supervisor = harness.supervisor_of(run)
    away = run.path.with_name("away")
    run.path.rename(away)
    moved = RunDirectory(away)
    until(lambda: max(harness.losses(moved), default=0) > 0 and not harness.ranks_of(moved), "the ranks to fail")
    assert not run.path.exists()  # no second directory in its place
    assert supervisor.is_alive()
    away.rename(run.path)
    assert start.wait(run, harness.LIMIT_S).status is Status.FINISHED
    assert run.last_checkpoint() == harness.ITERATIONS
    assert harness.losses(run).items() <= harness.losses(calm).items()  # the records of that time are missing
    harness.check_nobody_left(run)
