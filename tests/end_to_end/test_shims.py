"""Each fix of cpu.py is needed: without it a case fails. One that is not needed must go."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from engine.plan.layout import Layout
from engine.run.directory import RunDirectory
from engine.workers.cpu import FIXES
from tests.end_to_end.conftest import MakeCase
from tests.end_to_end.harness import Failed, Zygote, losses


@dataclass(frozen=True)
class Smallest:
    """The smallest case that shows a fix missing."""

    worker: str = "train"
    layout: Layout = Layout()
    says: str = ""
    """What the error is about; empty: it ends, with other losses."""
    goal: str = "continue"


CASES = {
    "cuda_means_cpu": Smallest("convert", says="must be cuda device"),
    "cuda_answers": Smallest("convert", says="CUDA"),
    "random_state": Smallest(says="CUDA"),
    "start_without_cuda": Smallest(says="Megatron requires CUDA"),
    "compiled_helpers": Smallest(says="SystemExit: 1"),
    "expert_bias_gradient": Smallest(says="inplace"),
    "expert_bias_counted_once": Smallest(layout=Layout(tp=2)),
    "token_counts_on_cpu": Smallest(layout=Layout(ep=2, dp=2), says="all_to_all"),
    "norm_with_sequence_parallel": Smallest(layout=Layout(tp=2), says="sequence parallel"),
    "results_in_process": Smallest("convert", says="exit codes [77]"),
}


def test_every_fix_has_a_case() -> None:
    # Adapters have their case in tests/finetune.
    assert set(CASES) | {"absent_packages", "adapters_of_local_layers"} == set(FIXES)


@pytest.mark.parametrize("fix", CASES)
def test_a_case_fails_without(zygote: Zygote, trained: RunDirectory, case: MakeCase, fix: str) -> None:
    smallest = CASES[fix]
    run = case({"training.goal": smallest.goal}, smallest.layout)
    ranks = smallest.layout.world_size
    if smallest.says:
        with pytest.raises(Failed, match=smallest.says.replace("[", r"\[").replace("]", r"\]")):
            zygote.run(smallest.worker, run, ranks, without=(fix,))
    else:
        zygote.run(smallest.worker, run, ranks, without=(fix,))
        assert losses(run) != pytest.approx(losses(trained), abs=1e-5)


def test_bridge_cannot_be_imported_without_the_absent_packages() -> None:
    code = (
        "from engine.workers import cpu; cpu.prepare_environment()\n"
        "cpu.install(without=('absent_packages',)) or __import__('megatron.bridge')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert "No module named 'transformer_engine'" in done.stderr
