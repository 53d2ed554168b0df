"""What comes from elsewhere may hold pipes and devices in the place of files: nobody waits for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine import models, patience
from engine.checkpoints import inspect
from engine.errors import EngineError
from engine.paths import file_text, open_file
from engine.run.directory import RunDirectory, records
from tests.limits import LIMIT_S

CONFIG = '{"model_type": "gpt_oss"}'
MADE = {
    "latest_checkpointed_iteration.txt": "10",
    "iter_0000010/.metadata": "x",
    "iter_0000010/metadata.json": "{}",
    "iter_0000010/run_config.yaml": "model:\n",
    "config.json": CONFIG,
    "model.safetensors": "x",
    "adapter_config.json": "{}",
}


def _places(root: Path, other: str, kind: str) -> Path:
    """A checkpoint in which the file `other` is a pipe, or a device that never ends."""
    top = other.partition("/")[0]
    is_megatron = top.startswith(("latest", "iter"))
    for name, text in MADE.items():
        if name.startswith(("latest", "iter")) is not is_megatron or (name == "adapter_config.json") is not (
            other == "adapter_config.json"
        ):
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name != other:
            (root / name).write_text(text)
        elif kind == "pipe":
            os.mkfifo(root / name)
        else:
            (root / name).symlink_to("/dev/zero")
    return root


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("other", MADE)
def test_a_checkpoint_is_inspected_without_waiting(other: str, kind: str, tmp_path: Path) -> None:
    checkpoint = _places(tmp_path, other, kind)
    try:
        found = patience.within(lambda: inspect.inspect(checkpoint), LIMIT_S)
    except EngineError as error:
        assert "pipe or a device" in error.message
        return
    assert found.problems


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_the_config_of_a_model_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="pipe or a device"):
        patience.within(lambda: models.read_config(_places(tmp_path, "config.json", kind)), LIMIT_S)


def test_somebody_s_run_is_read_without_waiting(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.checkpoints.mkdir()
    for path in (run.state, run.plan, run.metrics, run.checkpoints / "latest_checkpointed_iteration.txt"):
        os.mkfifo(path)
    for read in (run.read_state, run.read_plan, lambda: list(records(run.metrics))):
        with pytest.raises(EngineError, match="pipe or a device"):
            patience.within(read, LIMIT_S)
    assert patience.within(run.last_checkpoint, LIMIT_S) is None


def test_a_file_is_read_and_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("wörter")
    assert file_text(tmp_path / "file") == "wörter"
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
