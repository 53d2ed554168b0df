"""From settings and a machine to a Plan."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from engine import presets
from engine.errors import PlanError
from engine.machine import Gpu, Machine
from engine.models import TUTORIAL_TOY, find
from engine.plan import calibration, memory
from engine.plan.cluster import Cluster, named, of_machine
from engine.plan.job import from_training
from engine.plan.plan import Plan
from engine.plan.planner import make_plan
from engine.plan.search import Space, is_possible, search
from engine.settings import Settings

NVML_NAMES = {"H100": "NVIDIA H100 80GB HBM3", "H200": "NVIDIA H200", "GB300": "NVIDIA GB300"}


def machine(family: str = "H100", gpus: int = 8, nodes: int = 1, **changes: Any) -> Machine:
    facts = calibration.find_family(family)
    gpu = {
        "name": NVML_NAMES[family],
        "memory_total_gib": facts.memory_gib,
        "compute_capability": facts.capability,
        "nvlinks": 18,
        "nvlink_version": 4,
    }
    found = tuple(Gpu(index=index, **gpu) for index in range(gpus))  # type: ignore[arg-type]
    return Machine(**{"gpus": found, "nodes": nodes, "cpu_cores": 96, "ram_gib": 2000.0, **changes})


LAPTOP = Machine(cpu_cores=4, ram_gib=16.0)


def plan(values: dict[str, object], on: Machine) -> Plan:
    return make_plan(Settings().with_values(values), on)


def names(made: Plan) -> list[str]:
    return [step.name for step in made.steps]


def test_the_rehearsal_is_planned_on_a_laptop() -> None:
    made = make_plan(presets.find("rehearsal").settings, LAPTOP)
    assert (made.device, made.ranks_per_node, made.nodes, made.gpus) == ("cpu", 2, 1, ())
    assert str(made.layout) == "TP1 PP1 EP2 DP2"
    assert names(made) == ["prepare", "convert", "train", "export", "verify"]
    assert {step.name: step.ranks_per_node for step in made.steps} == {
        "prepare": 1, "convert": 1, "train": 2, "export": 1, "verify": 1,
    }  # fmt: skip
    assert Plan.from_json(made.to_json()) == made


def test_a_gpu_plan_uses_every_gpu_and_says_why() -> None:
    made = plan({"training.recompute": "moe"}, machine())
    assert made.device == "gpu"
    assert made.gpus == tuple(range(8))
    assert str(made.layout) == "TP1 PP1 EP8 DP8"
    ranks = {step.name: step.ranks_per_node for step in made.steps}
    assert (ranks["convert"], ranks["train"], ranks["export"]) == (1, 8, 1)
    assert made.reasons
    assert made.estimate["verdict"] == memory.SAFE
    assert Plan.from_json(made.to_json()).estimate == made.estimate


@pytest.mark.parametrize(
    ("values", "left_out"),
    [
        ({"training.goal": "pretrain"}, {"convert"}),
        ({"model.checkpoint": "/checkpoints/mine"}, {"convert"}),
        ({"output.export": False}, {"export", "verify"}),
        ({"output.verify": False}, {"verify"}),
    ],
)
def test_steps_that_are_not_needed_are_left_out(values: dict[str, object], left_out: set[str]) -> None:
    every = {"prepare", "convert", "train", "export", "verify"}
    assert set(names(plan({"model.name": "tiny", **values}, LAPTOP))) == every - left_out


def test_alternatives_can_be_set() -> None:
    base = Settings().with_values({"training.goal": "pretrain"})
    for other in make_plan(base, machine()).estimate["alternatives"]:
        made = make_plan(base.with_values(other["settings"]), machine())
        assert made.estimate["memory"]["peak_gib"] == pytest.approx(other["peak_gib"], abs=0.01)
        assert made.estimate["throughput"]["iteration_s"] == pytest.approx(other["iteration_s"])


def test_a_manual_layout_is_taken_as_it_is() -> None:
    made = plan({"layout.mode": "manual", "layout.tp": 2, "layout.pp": 2, "layout.ep": 4}, machine())
    assert str(made.layout) == "TP2 PP2 EP4 DP2"


def test_a_manual_layout_that_will_not_fit_is_planned_with_that_verdict() -> None:
    made = plan({"layout.mode": "manual", "training.micro_batch": 8, "layout.ep": 8}, machine())
    assert made.estimate["verdict"] == memory.OUT_OF_MEMORY
    assert made.estimate["memory"]["way_out"]


def test_a_manual_layout_that_breaks_rules_is_refused_with_the_fixes() -> None:
    with pytest.raises(PlanError, match="EP=3 does not divide 32 experts") as caught:
        plan({"layout.mode": "manual", "layout.ep": 3}, machine(gpus=6))
    assert "use ep 1, 2" in caught.value.hint


def test_an_automatic_layout_says_which_settings_would_fit() -> None:
    with pytest.raises(PlanError, match="predicted peak") as caught:
        plan({"training.micro_batch": 16, "training.global_batch": 128}, machine())
    assert "set training.micro_batch to" in caught.value.hint


def test_an_automatic_layout_says_what_machine_would_fit() -> None:
    with pytest.raises(PlanError) as caught:
        plan({"model.name": "gpt-oss-120b"}, machine())
    assert "32xH100" in caught.value.hint
    assert "on 8xH100: LoRA" in caught.value.hint


def test_an_odd_batch_is_refused_with_one_that_works() -> None:
    with pytest.raises(PlanError) as caught:
        plan({"training.global_batch": 7, "training.micro_batch": 7}, machine(gpus=5))
    assert "global batch" in caught.value.message
    assert "use a global batch of 35" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "on", "said"),
    [
        ({"machine.device": "gpu"}, LAPTOP, "no GPU"),
        ({"machine.gpus_per_node": 16}, machine(), "there are 8 GPUs"),
        ({"model.name": "gpt-oss-20b"}, LAPTOP, "GiB of memory"),
    ],
)
def test_a_machine_that_cannot_do_it_is_refused(values: dict[str, object], on: Machine, said: str) -> None:
    with pytest.raises(PlanError, match=said) as caught:
        plan(values, on)
    assert caught.value.hint


def test_the_cpu_can_be_asked_for_beside_gpus() -> None:
    made = plan({"model.name": "tiny", "machine.device": "cpu", "machine.cpu_ranks": 4}, machine())
    assert (made.device, made.layout.ep, made.layout.dp) == ("cpu", 4, 4)


def test_the_cpu_layout_follows_the_batch() -> None:
    values = {"model.name": "tiny", "machine.cpu_ranks": 4, "training.global_batch": 6}
    made = plan(values, LAPTOP)
    assert made.layout.dp in (1, 2)
    assert made.layout.world_size == 4


def test_fewer_gpus_are_the_first_ones() -> None:
    made = plan({"machine.gpus_per_node": 4, "training.recompute": "full"}, machine("H200"))
    assert made.gpus == (0, 1, 2, 3)
    assert made.layout.world_size == 4


def test_the_smallest_gpu_and_the_slowest_link_count() -> None:
    mixed = machine()
    small = Gpu(index=8, name="NVIDIA A100-SXM4-40GB", memory_total_gib=40, compute_capability=(8, 0))
    cluster = of_machine(Machine(gpus=(*mixed.gpus, small)))
    assert cluster.memory_gib == 40
    assert cluster.nvlink_domain == 1  # the last one has no links
    assert of_machine(mixed).nvlink_domain == 8


@pytest.mark.parametrize("gpus", [0, -1, 73])
def test_impossible_clusters_are_refused(gpus: int) -> None:
    with pytest.raises(PlanError):
        named("H100", gpus)
    with pytest.raises(PlanError):
        Cluster(family=calibration.find_family("H100"), gpus_per_node=8, memory_gib=-1)


SHIPPED = [preset for preset in presets.all_presets() if not preset.is_user and preset.settings.machine.device != "cpu"]


def test_the_tutorial_s_plan_is_about_its_toy() -> None:
    made = make_plan(presets.find("tutorial").settings, machine(gpus=4))
    assert made.estimate["model"] == "the tutorial's toy"
    assert made.estimate["alternatives"] == []
    assert names(made) == ["prepare", "train"]
    # A published reading of 02_train.sh comes to 289 million parameters.
    assert TUTORIAL_TOY.parameters == pytest.approx(289e6, rel=0.005)


@pytest.mark.parametrize("preset", SHIPPED, ids=lambda preset: preset.name)
def test_every_preset_fits_its_own_machine_safely(preset: presets.Preset) -> None:
    named_machine = re.search(r"(\d+)x(\w+)$", preset.name)
    count, family = named_machine.groups() if named_machine else ("4", "h100")  # the tutorial's has no name
    settings = preset.settings
    per_node = settings.machine.gpus_per_node
    own = machine(family.upper(), per_node)
    assert per_node * settings.machine.nodes == int(count)
    made = make_plan(settings, own)
    assert made.estimate["verdict"] == memory.SAFE
    assert made.world_size == int(count)
    assert [f for f in made.estimate["findings"] if f["severity"] == "error"] == []
    assert preset.summary
    # Nothing that could be set is much faster.
    best = max((one["tokens_per_s_per_gpu"] for one in made.estimate["alternatives"]), default=0)
    assert best < 1.10 * made.estimate["throughput"]["tokens_per_s_per_gpu"]


def test_the_small_lora_also_fits_an_h200() -> None:
    made = make_plan(presets.find("20b-lora-1xh100").settings, machine("H200", 1))
    assert made.estimate["verdict"] == memory.SAFE


def test_there_is_a_preset_for_every_usual_machine() -> None:
    assert {preset.name for preset in SHIPPED} == {
        "20b-continue-8xh100",
        "20b-pretrain-8xh100",
        "20b-pretrain-16xh100",
        "20b-pretrain-8xh200",
        "120b-pretrain-64xh100",
        "120b-pretrain-64xgb300",
        "20b-sft-8xh100",
        "20b-lora-1xh100",
        "120b-lora-8xh100",
        "120b-sft-32xh100",
        "tutorial",
    }


@pytest.mark.parametrize("goal", ["continue", "lora"])
@pytest.mark.parametrize("model", ["gpt-oss-20b", "gpt-oss-120b"])
def test_the_short_way_to_whether_a_job_is_possible_agrees_with_the_search(model: str, goal: str) -> None:
    settings = Settings().with_values({"model.name": model, "training.goal": goal})
    for family, gpus, nodes in [("H100", 1, 1), ("H100", 8, 1), ("H200", 8, 1), ("H100", 8, 4), ("B300", 8, 2)]:
        cluster = named(family, gpus, nodes)
        job = replace(
            from_training(settings.training, find(settings), settings.finetune.lora_rank),
            global_batch=4 * cluster.world_size,
            gradient_precision="bf16",
            recompute=frozenset({"full"}),
        )
        space = Space(
            micro_batches=(job.micro_batch,),
            recomputes=(job.recompute,),
            gradient_precisions=("bf16",),
            precisions=(job.precision,),
        )
        found = any(one.verdict == memory.SAFE for one in search(job, cluster, space))
        assert is_possible(job, cluster) is found, cluster
