"""Requests as values, waiting without sleeping for luck, and what the machine allows."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.launch.command import StepRequest
from engine.plan.layout import Layout
from engine.run.directory import RunDirectory, read_records
from engine.settings import Settings
from tests.limits import LIMIT_S

FAKES = Path(__file__).parent.parent / "fakes"


def until(claim: Callable[[], object], limit_s: float = LIMIT_S, what: str = "") -> None:
    """Wait for `claim` to hold."""
    deadline = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < deadline, f"waited too long {what}"
        time.sleep(0.05)


def request_of(**changes: Any) -> StepRequest:
    """A training step of two GPUs, with `changes`; `values` are settings."""
    values = {"model.name": "gpt-oss-20b", "output.export": False, **changes.pop("values", {})}
    run = Path(changes.pop("run", "/runs/mine"))
    facts: dict[str, Any] = {
        "run": run,
        "attempt": run / "attempts" / "03-train",
        "step": "train",
        "ranks_per_node": 2,
        "nodes": 1,
        "uses_all_ranks": True,
        "device": "gpu",
        "layout": Layout(ep=2, dp=2),
        "python": "/opt/python",
        "own_python": "/opt/gptoss/python",
        "source": run / "source",
        "gpus": (0, 1),
        "user": (1000, 1000),
        "runtime": "docker",
        "environment": {
            "GPUS_PER_NODE": 2, "NUM_NODES": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500, "NODE_RANK": 0,
        },
    }  # fmt: skip
    return StepRequest(settings=Settings().with_values(values), **{**facts, **changes})


def is_training(run: RunDirectory) -> bool:
    return any(record.get("iteration") == 5 for record in read_records(run.metrics))


def messages(run: RunDirectory, kind: str) -> list[str]:
    return [record["message"] for record in read_records(run.events) if record["kind"] == kind]


def need(*programs: str) -> None:
    """Skip where a program is not installed."""
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")


def sh(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, **options)
