"""Killed at any moment, short of space, not allowed to write: what is there stays whole, and the reason is told."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from engine.checkpoints import inspect
from tests.convert.conftest import ROOT, MakeSource

TIMES = 12


def test_killed_at_random_moments(source: MakeSource, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.convert.killing", str(source("bf16", 64)), str(tmp_path), str(TIMES)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, seen in json.loads(done.stdout).items():
        assert seen["wrong"] == [], name
        assert seen["killed"] >= TIMES // 2 and seen["resumed"] > 0, seen  # many were in the middle of it
        assert (seen["at the end"], seen["left"]) == ("", []), name


def test_a_file_that_cannot_grow_is_told(source: MakeSource, tmp_path: Path) -> None:
    """The kernel's own refusal, as with a full disk."""
    job = {"job": "convert", "source": str(source("bf16", 64)), "out": str(tmp_path / "m"), "dtype": "bf16"}
    done = subprocess.run(
        [sys.executable, "-m", "engine.workers.stream", json.dumps({**job, "threads": 1})],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, answer["code"]) == (1, 1), done.stderr
    assert "__0_0.distcp cannot be written: File too large" in answer["error"] and "ulimit" in answer["hint"]
    assert not (tmp_path / "m").exists()


def test_a_place_where_nothing_can_be_made_is_told(source: MakeSource, tmp_path: Path) -> None:
    from engine.errors import StepFailed
    from engine.workers.stream.convert import convert

    (tmp_path / "file").touch()
    with pytest.raises(StepFailed, match="cannot be written: Not a directory") as caught:
        convert(source("bf16", 64), tmp_path / "file" / "m", "bf16")
    assert caught.value.hint == "give another directory"


def test_an_unfinished_checkpoint_is_never_taken_for_one(source: MakeSource, tmp_path: Path) -> None:
    from engine.errors import EngineError
    from engine.workers.stream.convert import convert
    from engine.workers.stream.export import export

    convert(source("bf16", 64), tmp_path / "m", "bf16")
    (tmp_path / "m" / "iter_0000000" / ".metadata").unlink()  # it is written when all the others are
    with pytest.raises(EngineError, match="is not a complete torch_dist checkpoint"):
        export(tmp_path / "m", tmp_path / "hf", source("bf16", 64), "bf16")
    assert not inspect.inspect(tmp_path / "m").is_complete
