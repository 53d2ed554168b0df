"""The program as a person uses it: one command, real torchrun, real supervisor; stopped, killed, resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.run.directory import RunDirectory, read_records
from tests.faults import harness
from tests.limits import LONG_LIMIT_S as LIMIT_S

pytestmark = pytest.mark.engine

SHORT = [
    word
    for pair in ("training.iterations=48", "training.checkpoint_interval=16", "data.max_megabytes=0.5",
                 "training.evaluation_interval=48", "training.warmup_iterations=2")
    for word in ("--set", pair)
]  # fmt: skip


@pytest.fixture
def gptoss(tmp_path):
    """Start `gptoss ARGUMENTS` without a terminal, in an empty home."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "HF_"))}
    environment |= {"HOME": str(tmp_path), "GPTOSS_RUNS": str(tmp_path / "runs")}

    def begin(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gptoss_tui", *arguments]
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def _finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def _losses(run: RunDirectory) -> dict[int, float]:
    """The last loss of each iteration: after a resume some are made again."""
    return {record["iteration"]: record["loss"] for record in read_records(run.metrics) if "loss" in record}


def test_watching_is_killed_the_run_is_stopped_and_resumed_as_if_nothing_had_been(gptoss, tmp_path):
    run = RunDirectory(tmp_path / "runs" / "rough")
    watching = gptoss("quickstart", "rehearsal", "--name", "rough", *SHORT, "--headless")
    deadline = time.monotonic() + LIMIT_S
    while max(_losses(run), default=0) < 6:
        assert watching.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    watching.send_signal(signal.SIGKILL)  # what watches is not what trains
    watching.communicate()
    code, out, err = _finish(gptoss("stop", "rough", "--wait", "--json"))
    assert (code, json.loads(out)["status"]) == (0, "stopped"), err
    stopped_at = run.last_checkpoint()
    assert stopped_at is not None and 6 <= stopped_at < 48

    code, out, err = _finish(gptoss("run", "--resume", "rough", "--headless", "--json"))
    assert code == 0, err
    facts = json.loads(out.splitlines()[-1])
    assert facts["status"] == "finished"
    assert facts["logits_max_difference"] <= facts["logits_tolerance"]
    assert facts["last_loss"] < facts["first_loss"] - 0.5
    assert Path(facts["export"], "model.safetensors").exists()
    # The same training once more, from the same data and weights, with nothing in its way.
    calm = harness.copy(run, tmp_path / "runs", "calm")
    harness.rewind(calm, "train")
    code, _, err = _finish(gptoss("run", "--resume", "calm", "--headless"))
    assert code == 0, err
    assert _losses(run) == _losses(calm)
