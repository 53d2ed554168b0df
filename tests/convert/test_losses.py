"""The loss by transformers: the same for the whole model and for one that gets its weights a layer at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from engine.checkpoints import hugging_face
from engine.run.directory import RunDirectory
from engine.workers import evaluation, losses
from tests.convert import models
from tests.convert.conftest import MakeSource

SAMPLES, LENGTH = 6, 40
"""In micro batches of two; longer than the window of 16."""


@pytest.fixture
def samples(tmp_path: Path) -> evaluation.LastEvaluation:
    chance = numpy.random.default_rng(0)
    tokens = chance.integers(0, models.tiny().vocab, (SAMPLES // 2, 2, LENGTH + 1))
    mask = chance.integers(0, 2, (SAMPLES // 2, 2, LENGTH)).astype(numpy.float32)
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    file = tmp_path / "run" / "evaluation" / "samples.npz"
    numpy.savez(file, tokens=tokens[..., :-1], labels=tokens[..., 1:], mask=mask)
    return evaluation.LastEvaluation(iteration=1, loss=0.0, files=(file.name,))


class Report:
    """Stands for a step's report."""

    def __init__(self, run: Path) -> None:
        self.run = RunDirectory(run)
        self.plan = SimpleNamespace(device="cpu")
        self.settings = SimpleNamespace(training=SimpleNamespace(precision="fp32"))
        self.told: list[str] = []

    def progress(self, message: str, done: int, total: int, unit: str) -> None:
        self.told.append(f"{message} {done}/{total}")

    def event(self, kind: str, message: str) -> None:
        self.told.append(message)


def _leave_free(patch: pytest.MonkeyPatch, free_bytes: int) -> None:
    patch.setattr("engine.workers.stream.resources.available_memory_bytes", lambda: free_bytes)


@pytest.mark.parametrize("form", ["mxfp4", "fp32"])
def test_a_layer_at_a_time_gives_the_same(
    source: MakeSource, samples: evaluation.LastEvaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    report: Any = Report(tmp_path / "run")
    whole = losses.losses(report, source(form, 64), [samples], "whole")
    assert report.told == [f"loss of the whole model {done}/3" for done in (1, 2, 3)]
    _leave_free(monkeypatch, models.tiny().parameters * 4)  # and no room to compute
    monkeypatch.setattr(losses, "_whole", lambda *_: pytest.fail("the whole model was loaded"))
    report.told.clear()
    found = losses.losses(report, source(form, 64), [samples, samples], "exported")
    assert found == pytest.approx([*whole, *whole], abs=1e-5)
    assert "a layer at a time" in report.told[0] and len(report.told) == 1 + 2 * 3


def test_micro_batches_share_a_pass_where_there_is_room(
    source: MakeSource, samples: evaluation.LastEvaluation, tmp_path: Path
) -> None:
    run, model = RunDirectory(tmp_path / "run"), hugging_face.read(source("bf16", 64)).model
    one = losses._bytes(model, 2, LENGTH)
    for room, sizes in ((0, [2, 2, 2]), (2 * one, [4, 2]), (3 * one, [6])):
        joined = list(losses._joined(evaluation.read_samples(run, samples), model, room))
        assert [tokens.shape[0] for tokens, _, _ in joined] == sizes
        assert [mask.shape for _, _, mask in joined] == [(size, LENGTH) for size in sizes]
