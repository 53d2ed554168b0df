"""The best checkpoint and the end of patience, from the run's records alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.checkpoints import training
from engine.monitor.record import parse_record
from engine.run import directory, rotation, validation
from engine.run.directory import RunDirectory
from engine.settings import Settings

BEST = Settings().with_values({"output.export_checkpoint": "best"})


def a_run(path: Path, losses: dict[int, float | None], saved: tuple[int, ...] = ()) -> RunDirectory:
    lines = [{"step": "train", "iteration": at, "validation_loss": loss} for at, loss in losses.items()]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{half a li")
    for iteration in saved:
        training.directory(path / "checkpoints", iteration).mkdir(parents=True)
    return RunDirectory(path)


@pytest.fixture(autouse=True)
def every_checkpoint_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(checkpoint: Path, needed: tuple[str, ...] = ()) -> str | None:
        return "damaged" if (checkpoint / "damaged").exists() else None

    monkeypatch.setattr(training, "defect", defect)


def test_losses_are_those_of_the_training(tmp_path: Path) -> None:
    run = a_run(tmp_path, {0: 6.0, 10: 5.0, 20: None, 30: 4.0})
    with run.metrics.open("a") as file:
        file.write(
            '\n{"step": "train", "iteration": 10, "validation_loss": 4.5}\n{"step": "x", "validation_loss": 1}\n'
        )
    assert validation.losses(run) == {0: 6.0, 10: 4.5, 30: 4.0}
    assert validation.losses(run, until=10) == {0: 6.0, 10: 4.5}


def test_the_iterations_in_between_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(tmp_path, {10: 5.0})
    with run.metrics.open("a") as file:
        file.write("\n" + '{"step": "train", "iteration": 11, "loss": 5.0}\n' * 100)
    read: list[bytes] = []
    monkeypatch.setattr(directory, "parse_record", lambda line: read.append(line) or parse_record(line))
    assert validation.losses(run) == {10: 5.0}
    assert len(read) == 1


@pytest.mark.parametrize(
    ("losses", "patience", "ends"),
    [
        ({}, 1, False),
        ({0: 5.0}, 1, False),
        ({0: 5.0, 10: 4.0}, 1, False),
        ({0: 5.0, 10: 4.0, 20: 4.0}, 1, True),
        ({0: 5.0, 10: 4.0, 20: 4.1}, 2, False),
        ({0: 5.0, 10: 4.0, 20: 4.2, 30: 4.1}, 2, True),
        ({0: 5.0, 10: 4.0, 20: 4.2, 30: 3.9}, 2, False),
        ({0: 5.0, 10: 9.0, 20: 9.0, 30: 9.0}, 0, False),
        ({0: 5.0, 10: 9.0, 20: 9.0, 30: 9.0}, 3, True),
    ],
)
def test_patience(losses: dict[int, float], patience: int, ends: bool) -> None:
    assert bool(validation.exhausted(losses, patience)) is ends


def test_the_best_checkpoint_is_spared_and_exported(tmp_path: Path) -> None:
    run = a_run(tmp_path, {0: 6.0, 10: 3.0, 15: 2.0, 20: 4.0, 30: 5.0}, saved=(10, 20, 30))
    # There is none of iteration 15, where the loss was lowest.
    assert validation.spared(run, BEST) == validation.to_export(run, BEST) == 10
    assert validation.spared(run, Settings()) is None
    assert validation.to_export(run, Settings()) == 30
    assert rotation.rotate(run, BEST.with_values({"output.keep_checkpoints": 1})) == [20]
    assert training.iterations(run.checkpoints) == [30, 10]


def test_a_damaged_best_checkpoint_is_passed_over(tmp_path: Path) -> None:
    run = a_run(tmp_path, {10: 3.0, 20: 4.0, 30: 5.0}, saved=(10, 20, 30))
    (training.directory(run.checkpoints, 10) / "damaged").touch()
    assert validation.to_export(run, BEST) == 20


def test_without_an_evaluation_the_last_one_is_exported(tmp_path: Path) -> None:
    assert validation.to_export(a_run(tmp_path, {}, saved=(10, 20)), BEST) == 20


def test_a_run_without_checkpoints_has_nothing_to_export(tmp_path: Path) -> None:
    assert validation.to_export(a_run(tmp_path, {10: 3.0}), BEST) is None
