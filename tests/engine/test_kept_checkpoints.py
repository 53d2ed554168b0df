"""Which of a training's checkpoints are whole: asked often, and read only when they have changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.checkpoints import torch_dist, training
from engine.checkpoints.torch_dist import Chunk, DistributedCheckpoint, Tensor
from engine.errors import CheckpointError

LENGTH = 100


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    made = training.directory(tmp_path, 10)
    made.mkdir()
    for name in training.MEGATRON_LM:
        (made / name).write_text("index")
    (made / "__0_0.distcp").write_bytes(bytes(LENGTH))
    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The checkpoints whose index was read."""
    found: list[Path] = []

    def read(path: Path) -> DistributedCheckpoint:
        found.append(path)
        if (path / torch_dist.METADATA).read_text() != "index":
            raise CheckpointError("it is damaged", "use another checkpoint")
        chunk = Chunk(offsets=(0,), sizes=(25,), file="__0_0.distcp", start=0, length=LENGTH)
        tensor = Tensor(key="weight", dtype="float32", shape=(25,), chunks=(chunk,))
        return DistributedCheckpoint(path=path, tensors={"weight": tensor}, objects={})

    monkeypatch.setattr(torch_dist, "read", read)
    return found


def test_an_index_is_read_once(checkpoint: Path, reads: list[Path]) -> None:
    for _ in range(5):
        assert training.newest_whole(checkpoint.parent, training.MEGATRON_LM) == 10
    assert reads == [checkpoint]


def test_the_files_are_looked_at_every_time(checkpoint: Path, reads: list[Path]) -> None:
    assert training.defect(checkpoint, training.MEGATRON_LM) is None
    os.truncate(checkpoint / "__0_0.distcp", LENGTH - 1)
    assert "is cut off" in str(training.defect(checkpoint, training.MEGATRON_LM))
    (checkpoint / "__0_0.distcp").unlink()
    assert training.defect(checkpoint, training.MEGATRON_LM) == "__0_0.distcp is missing"
    assert reads == [checkpoint]


@pytest.mark.parametrize("name", training.MEGATRON_LM)
def test_an_index_that_has_changed_is_read_again(name: str, checkpoint: Path, reads: list[Path]) -> None:
    assert training.defect(checkpoint, training.MEGATRON_LM) is None
    (checkpoint / name).write_text("nonsense")
    training.defect(checkpoint, training.MEGATRON_LM)
    assert len(reads) == 2
    (checkpoint / torch_dist.METADATA).write_text("more nonsense")
    for _ in range(2):
        assert training.defect(checkpoint, training.MEGATRON_LM) == "it is damaged"
