"""Measured beside planned, and what is kept of it."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from engine import presets
from engine.errors import RunError
from engine.hardware.gpu import Gpu
from engine.machine import Machine
from engine.measurements import Measurement, recall, remember
from engine.monitor.measured import Settling, as_measurement, beside_plan, measure
from engine.plan.layout import Layout
from engine.plan.plan import Plan
from engine.plan.planner import make_plan
from engine.settings import Settings
from tests.monitor.simulated import healthy

GPU_SETTINGS = Settings().with_values(
    {"model.name": "gpt-oss-20b", "training.goal": "pretrain", "training.sequence_length": 4096,
     "training.global_batch": 64, "training.recompute": "moe"}
)  # fmt: skip

PLAN = Plan(
    device="gpu",
    layout=Layout(ep=8, dp=8),
    ranks_per_node=8,
    nodes=1,
    steps=(),
    estimate={"gpu": "H100", "memory": {"peak_gib": 50.0}, "throughput": {"tokens_per_s_per_gpu": 5000.0}},
)


def records(count: int):
    for record in itertools.islice(healthy(1000, seconds=2.0), count):
        yield {**record, "tokens_per_s_per_gpu": 12_000 / record["iteration_s"]}


def kept_of(plan: Plan) -> Measurement:
    return as_measurement(measure(records(100)), GPU_SETTINGS, plan, "here")


def dgx() -> Machine:
    gpu = Gpu(index=0, name="NVIDIA H100 80GB HBM3", memory_total_gib=79.6, compute_capability=(9, 0), nvlinks=18)
    return Machine(host="dgx", gpus=tuple(replace(gpu, index=i) for i in range(8)))


def test_too_few_iterations_tell_nothing():
    assert measure(records(24)) is None
    assert measure([]) is None


def test_the_first_iterations_do_not_count():
    measured = measure(records(25))
    assert measured is not None and measured.iteration_s == pytest.approx(2.0, rel=0.02)  # the first took 60 s
    assert measure(records(900)).iteration_s == measured.iteration_s


def test_measured_beside_planned():
    measured = measure(records(200))
    speed, memory = beside_plan(measured, PLAN)
    assert (speed.name, speed.planned, speed.unit) == ("throughput per GPU", 5000.0, "tokens/s")
    assert speed.ratio == pytest.approx(1.2, rel=0.02)
    assert memory.ratio == pytest.approx(62 / 50, rel=0.01)


def test_on_a_cpu_the_ranks_share_the_memory():
    plan = replace(PLAN, device="cpu", ranks_per_node=2, estimate={"memory": {"peak_gib": 100.0}})
    [memory] = beside_plan(measure(records(200)), plan)
    assert memory.measured == pytest.approx(124, rel=0.01)


def test_what_was_not_planned_is_left_out():
    assert beside_plan(measure(records(100)), replace(PLAN, estimate={})) == ()


def test_the_newest_of_each_kind_is_kept(tmp_path):
    path = tmp_path / "deep" / "calibration.json"
    first = kept_of(PLAN)
    assert (first.device, first.world_size, first.layout) == ("H100", 8, "TP1 PP1 EP8 DP8")
    remember(first, path)
    remember(replace(first, speed_ratio=0.5, t=first.t + 1), path)
    remember(replace(first, model="gpt-oss-120b"), path)
    kept = {one.model: one for one in recall(path)}
    assert len(kept) == 2 and kept["gpt-oss-20b"].speed_ratio == 0.5


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"version": 99, "measured": []}', '{"version": 1, "measured": []}',
     '{"version": 2, "measured": [{"x": 1}]}'],
)  # fmt: skip
def test_a_file_that_is_not_ours_tells_nothing(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    assert recall(path) == ()


@pytest.mark.parametrize("change", [{"speed_ratio": "fast"}, {"t": None}, {"model": 3}, {"memory_gib": -1.0}])
def test_a_damaged_measurement_is_left_out_alone(tmp_path, change):
    path = tmp_path / "calibration.json"
    whole = asdict(kept_of(PLAN))
    path.write_text(json.dumps({"version": 2, "measured": [whole, {**whole, **change}]}))
    assert [asdict(one) for one in recall(path)] == [whole]


def test_the_number_kept_is_bounded(tmp_path):
    path = tmp_path / "calibration.json"
    one = kept_of(PLAN)
    old = [{**asdict(one), "model": f"m{i}", "t": i + 1} for i in range(300)]
    path.write_text(json.dumps({"version": 2, "measured": old}))
    remember(replace(one, t=1000.0), path)
    assert len(recall(path)) == 200 and recall(path)[-1].t == 1000.0


def test_a_place_that_cannot_be_written_is_said():
    with pytest.raises(RunError, match="cannot be written"):
        remember(kept_of(PLAN), Path("/proc/nowhere/calibration.json"))


def test_a_growing_memory_is_told_again():
    settling = Settling()
    told = [settling.feed(record) for record in records(30)]
    assert told.index(True) == 24 and sum(told) == 1
    assert not settling.feed({"t": 9.0, "iteration": 31, "memory_gib": settling.measured.memory_gib * 1.005})
    assert settling.feed({"t": 9.0, "iteration": 31, "memory_gib": 70.0})
    assert settling.measured.memory_gib == 70.0


def rehearsal(**machine: object) -> Plan:
    settings = presets.find("rehearsal").settings
    return make_plan(settings, Machine(host="here", cpu_cores=2, ram_gib=24.0, **machine))


def test_a_rehearsal_is_planned_as_it_was_measured():
    plan = rehearsal()
    assert "throughput" not in plan.estimate
    settings = presets.find("rehearsal").settings
    kept = as_measurement(measure(records(100)), settings, plan, "here")
    again = rehearsal(measured=(kept,))
    assert again.estimate["throughput"]["tokens_per_s_per_gpu"] == kept.tokens_per_s_per_gpu
    assert again.estimate["memory"]["peak_gib"] == pytest.approx(124, rel=0.01)
    assert again.reasons[-1].startswith("This very job was measured here on ")
    # What is measured of the corrected plan compares with the formula again, not with itself.
    assert as_measurement(measure(records(100)), settings, again, "here") == kept
    elsewhere = make_plan(settings, Machine(host="there", cpu_cores=2, ram_gib=24.0, measured=(kept,)))
    assert "throughput" not in elsewhere.estimate


def test_other_jobs_of_the_model_are_corrected_by_the_usual_ratio():
    settings, machine = GPU_SETTINGS, dgx()
    formula = make_plan(settings, machine)
    speed = formula.estimate["throughput"]["tokens_per_s_per_gpu"]
    measured = replace(measure(records(100)), tokens_per_s_per_gpu=0.8 * speed)
    kept = as_measurement(measured, settings, formula, "dgx")
    assert kept.speed_ratio == pytest.approx(0.8)
    longer = settings.with_values({"training.sequence_length": 2048})
    before = make_plan(longer, machine).estimate
    plan = make_plan(longer, replace(machine, measured=(kept,)))
    after = plan.estimate
    assert after["throughput"]["iteration_s"] == pytest.approx(before["throughput"]["iteration_s"] / 0.8)
    assert sum(after["throughput"]["shares"].values()) == pytest.approx(after["throughput"]["iteration_s"])
    assert after["memory"] == before["memory"]
    assert "times 0.80: one job of gpt-oss-20b" in plan.reasons[-1]
    for one, other in zip(after["alternatives"], before["alternatives"], strict=True):
        assert one["tokens_per_s_per_gpu"] == pytest.approx(0.8 * other["tokens_per_s_per_gpu"])


def test_the_verdict_follows_the_measured_memory():
    machine = dgx()
    formula = make_plan(GPU_SETTINGS, machine)
    assert formula.estimate["verdict"] == "SAFE"
    measured = replace(measure(records(100)), memory_gib=79.0)
    kept = as_measurement(measured, GPU_SETTINGS, formula, "dgx")
    plan = make_plan(GPU_SETTINGS, replace(machine, measured=(kept,)))
    assert plan.estimate["verdict"] == "TIGHT"
    [told] = [one for one in plan.estimate["findings"] if one["key"] == "plan.memory"]
    assert told["severity"] == "warning" and "79.0 of 79.6 GiB" in told["what"]
    assert plan.estimate["memory"]["formula_peak_gib"] == formula.estimate["memory"]["peak_gib"]
