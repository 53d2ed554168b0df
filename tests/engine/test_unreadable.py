"""An I/O error says nothing of what is there: only what was read and is wrong may be moved or made anew."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoints import torch_dist, training
from engine.checkpoints.torch_dist import Chunk, DistributedCheckpoint, Tensor
from engine.data.merge import JOURNAL, Merger
from engine.errors import CheckpointError, ExitCode, UnreadableError
from engine.monitor import labels
from engine.monitor.labels import Labels
from engine.plan.layout import Layout
from engine.plan.plan import Plan, PlannedStep
from engine.run import repair, rotation, start
from engine.run.directory import RunDirectory
from engine.settings import Settings
from gptoss_tui.__main__ import main

Break = Callable[[Path], None]
KEEPS = Settings().with_values({"output.keep_checkpoints": 1})
PART = "__0_0.distcp"


@pytest.fixture(params=["EIO", "EACCES", "ESTALE"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Paths for which every call fails, as on a disk or a share that is about to be lost."""
    number = getattr(errno, request.param)
    paths: set[Path] = set()

    def guarded[T](call: Callable[..., T]) -> Callable[..., T]:
        def ask(path: Any = ".", *arguments: Any, **options: Any) -> T:
            if isinstance(path, (str, os.PathLike)) and Path(path) in paths:
                raise OSError(number, os.strerror(number), os.fspath(path))
            return call(path, *arguments, **options)

        return ask

    for module, name in ((os, "stat"), (os, "listdir"), (os, "scandir"), (io, "open")):
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))
    return paths


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run with whole checkpoints of 10, 20 and 30, the index of which says only that it was read."""
    monkeypatch.setenv("GPTOSS_RUNS", str(tmp_path))
    plan = Plan(device="cpu", layout=Layout(), ranks_per_node=1, nodes=1,
                steps=(PlannedStep(name="train", ranks_per_node=1, why="test"),))  # fmt: skip
    run = start.create(Settings().with_values({"model.name": "tiny"}), plan, "mine")
    for iteration in (10, 20, 30):
        checkpoint = training.directory(run.checkpoints, iteration)
        checkpoint.mkdir(parents=True)
        for name in (*training.NEEDED, PART):
            (checkpoint / name).write_text("whole")
    (run.checkpoints / torch_dist.TRACKER).write_text("30")

    def understand(iteration: Path, root: object) -> DistributedCheckpoint:
        chunk = Chunk(offsets=(0,), sizes=(1,), file=PART, start=0, length=5)
        tensor = Tensor(key="weight", dtype="uint8", shape=(5,), chunks=(chunk,))
        return DistributedCheckpoint(path=iteration, tensors={"weight": tensor}, objects={})

    def load(data: bytes, origin: str) -> object:
        if data != b"whole":
            raise CheckpointError(f"{origin} is damaged", "use another checkpoint")
        return None

    monkeypatch.setattr(torch_dist, "_understand", understand)
    monkeypatch.setattr(torch_dist, "_check_backend", lambda iteration: None)
    monkeypatch.setattr(torch_dist.pickles, "load", load)
    training._file_ends.cache_clear()
    return run


def _all_of(run: RunDirectory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(run.path.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", [*training.NEEDED, PART, ".."])
def test_a_checkpoint_that_cannot_be_read_stays_where_it_is(run: RunDirectory, broken: set[Path], name: str) -> None:
    before = _all_of(run)
    broken.add(run.checkpoints if name == ".." else training.directory(run.checkpoints, 30) / name)
    for ask in (rotation.settle, rotation.newest_whole, rotation.rotate):
        with pytest.raises(UnreadableError, match="cannot be read"):
            ask(run, KEEPS)
    broken.clear()
    assert _all_of(run) == before
    assert rotation.settle(run, KEEPS) == []
    assert rotation.rotate(run, KEEPS) == [10, 20]


def test_a_checkpoint_that_was_read_and_is_wrong_is_put_aside(run: RunDirectory, broken: set[Path]) -> None:
    (training.directory(run.checkpoints, 30) / torch_dist.METADATA).write_text("nonsense")
    assert "damaged-iter_0000030" in rotation.settle(run, KEEPS)[0]
    assert rotation.newest_whole(run, KEEPS) == 20


def test_the_best_checkpoint_is_not_removed_while_the_losses_cannot_be_read(
    run: RunDirectory, broken: set[Path]
) -> None:
    run.metrics.write_text('{"step": "train", "iteration": 10, "validation_loss": 1.0}\n')
    best = KEEPS.with_values({"output.export_checkpoint": "best"})
    broken.add(run.metrics)
    with pytest.raises(UnreadableError):
        rotation.rotate(run, best)
    broken.clear()
    assert rotation.rotate(run, best) == [20]


def test_a_state_that_cannot_be_read_is_not_rebuilt(
    run: RunDirectory, broken: set[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = _all_of(run)
    broken.add(run.state)
    with pytest.raises(UnreadableError):
        start.readable_state(run)
    [told] = repair.repair_all(run.path.parent)["mine"]
    assert told.startswith("left as it is: ") and str(run.state) in told
    assert main(["run", "--resume", str(run.path)]) == ExitCode.BAD_INPUT
    assert f"{run.state} cannot be read" in capsys.readouterr().err
    broken.clear()
    assert _all_of(run) == before


@pytest.mark.parametrize("name", ["mine", "newer"])
def test_a_state_that_is_not_there_is_rebuilt_whatever_the_run_is_called(run: RunDirectory, name: str) -> None:
    run.path.rename(run.path.with_name(name))
    run = RunDirectory(run.path.with_name(name))
    run.state.unlink()
    assert start.readable_state(run).name == name


def test_a_preparation_is_not_begun_anew_while_its_journal_cannot_be_read(tmp_path: Path, broken: set[Path]) -> None:
    Merger(tmp_path / "work", {"inputs": 1}, [], 2).close()
    broken.add(tmp_path / "work" / JOURNAL)
    (tmp_path / "work" / "precious").touch()
    with pytest.raises(OSError, match="journal"):
        Merger(tmp_path / "work", {"inputs": 1}, [], 2)
    assert (tmp_path / "work" / "precious").exists()


def test_labels_that_cannot_be_read_are_not_replaced(tmp_path: Path, broken: set[Path]) -> None:
    labels.write(tmp_path, Labels(note="keep me"))
    broken.add(tmp_path / labels.FILE_NAME)
    seen = labels.read(tmp_path)
    with pytest.raises(UnreadableError):
        labels.write(tmp_path, seen.with_tags(["new"]))
    broken.clear()
    assert labels.read(tmp_path).note == "keep me"
