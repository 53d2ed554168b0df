"""A rehearsal keeps the kinds of splitting, fits on a laptop, and says what it leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import presets
from engine.errors import PlanError
from engine.hardware.gpu import Gpu
from engine.machine import Machine
from engine.plan.planner import make_plan
from engine.plan.rehearsal import MOST_RANKS, rehearse
from engine.settings import Settings

LAPTOP = Machine(cpu_cores=2, ram_gib=16.0, ram_free_gib=12.0)
H100 = Gpu(index=0, name="NVIDIA H100 80GB HBM3", memory_total_gib=79.6, compute_capability=(9, 0), nvlinks=18)
NODE = replace(LAPTOP, gpus=tuple(replace(H100, index=i) for i in range(8)), ram_gib=2048.0)
BIG = [preset for preset in presets.all_presets() if preset.settings.machine.device != "cpu" and not preset.is_user]


def planned(settings: Settings):
    return make_plan(settings, replace(NODE, nodes=settings.machine.nodes), with_alternatives=False)


def by_hand(**sizes: int) -> Settings:
    return Settings().with_values({"layout.mode": "manual", **{f"layout.{name}": size for name, size in sizes.items()}})


@pytest.mark.parametrize("preset", [one for one in BIG if "gb300" not in one.name], ids=lambda preset: preset.name)
def test_every_preset_has_a_rehearsal(preset):
    plan = planned(preset.settings)
    made = rehearse(preset.settings, plan, LAPTOP)
    assert made.plan.device == "cpu"
    assert made.plan.world_size <= MOST_RANKS
    assert made.settings.model.name == "tiny"
    assert made.settings.training.goal == preset.settings.training.goal
    for axis in ("tp", "pp", "ep"):
        assert (getattr(made.plan.layout, axis) > 1) == (getattr(plan.layout, axis) > 1)
    assert make_plan(made.settings, LAPTOP) == made.plan  # what is shown is what is carried out


def test_what_cannot_be_kept_is_named():
    settings = by_hand(tp=2, cp=2, pp=2, ep=2)
    made = rehearse(settings, planned(settings), LAPTOP)
    assert any("Not rehearsed: CP" in note for note in made.notes)
    assert any("sample text stands in" in note for note in made.notes)


def test_own_data_is_what_is_rehearsed():
    settings = by_hand(ep=8).with_values({"data.source": "text", "data.path": "/books", "data.max_megabytes": 500.0})
    made = rehearse(settings, planned(settings), LAPTOP).settings
    assert (made.data.source, made.data.path, made.data.max_megabytes) == ("text", "/books", 2.0)


def test_nothing_of_a_cluster_is_left():
    settings = by_hand(ep=8).with_values(
        {"launch.launcher": "slurm", "machine.nodes": 2, "launch.master_port": 6000, "model.checkpoint": "/ckpt"}
    )
    made = rehearse(settings, planned(settings), LAPTOP)
    chosen = made.settings
    assert (chosen.launch.launcher, chosen.machine.nodes, chosen.launch.master_port) == ("local", 1, 0)
    assert chosen.model.checkpoint == ""
    assert any("launcher and the network are not tried" in note for note in made.notes)


def test_what_is_small_already_is_not_made_smaller():
    settings = presets.find("rehearsal").settings
    with pytest.raises(PlanError, match="on the CPU itself"):
        rehearse(settings, make_plan(settings, LAPTOP), LAPTOP)


def test_a_machine_that_is_too_small_says_so():
    settings = by_hand(ep=8)
    with pytest.raises(PlanError, match="cannot be rehearsed here") as refused:
        rehearse(settings, planned(settings), replace(LAPTOP, ram_gib=0.5))
    assert refused.value.hint
