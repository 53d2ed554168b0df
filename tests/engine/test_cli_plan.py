"""`gptoss plan` as a program: the object scripts rely on, described machines, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import LIMIT_S

MACHINES = Path(__file__).parent.parent / "fakes" / "nvml" / "machines"
PUBLISHED = (
    "--model gpt-oss-120b --gpu H100 --gpus-per-node 8 --nodes 8 --goal pretrain --sequence-length 4096 "
    "--micro-batch 1 --global-batch 1280 --precision bf16 --layout tp=1,pp=4,ep=8,cp=1 --recompute layernorm,moe_act"
).split()


@pytest.fixture
def plan(tmp_path):
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gptoss_tui", *arguments],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(tmp_path), "GPTOSS_RUNS": str(tmp_path / "runs")},
            timeout=LIMIT_S,
        )

    return call


def test_a_given_layout_is_judged(plan):
    done = plan("plan", *PUBLISHED, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["verdict"] == "SAFE"
    assert found["layout"] == {"tp": 1, "pp": 4, "cp": 1, "ep": 8, "dp": 16, "vpp": 1}
    assert len(found["memory"]["stages"]) == 4
    assert found["memory"]["peak_gib"] == max(stage["total_gib"] for stage in found["memory"]["stages"])
    # NVIDIA publishes 5,860 tokens/s per GPU for this job (performance summary, container 26.06).
    assert found["throughput"]["tokens_per_s_per_gpu"] == pytest.approx(5860, rel=0.15)


def test_without_a_layout_one_is_chosen_with_alternatives(plan):
    found = json.loads(plan("plan", "--model", "gpt-oss-20b", "--gpu", "H200", "--json").stdout)
    assert found["verdict"] == "SAFE"
    assert found["layout"]["ep"] == 8
    assert found["alternatives"]


def test_a_described_machine_stands_in_for_this_one(plan):
    done = plan("--machine", str(MACHINES / "8xh100.toml"), "plan", "20b-continue-8xh100", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["world_size"] == 8


def test_a_described_machine_is_not_started_on(plan, tmp_path):
    done = plan("--machine", str(MACHINES / "8xh100.toml"), "run", "rehearsal", "--headless")
    assert done.returncode == 2
    assert "not this one" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--gpu", "H100", "--layout", "pp=5"], 3, "PP=5 does not divide 24 layers"),
        (["--gpu", "H1000"], 2, "H1000"),
        (["--gpu", "H100", "--layout", "tp=x"], 2, "is not a size"),
        (["--gpu", "H100", "--gpus-per-node", "-1"], 2, "--gpus-per-node '-1' is out of range"),
        (["--gpu", "H100", "--model", "/nowhere"], 2, "/nowhere/config.json"),
        (["--gpu", "H100", "--recompute", "some"], 2, "recompute 'some' is not known"),
        (["--gpu", "L40S", "--gpus-per-node", "1"], 3, "OUT OF MEMORY"),
    ],
)
def test_what_cannot_be_is_refused_in_words(plan, arguments, code, text):
    done = plan("plan", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
