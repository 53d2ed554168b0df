"""Measured beside planned, and what is kept of it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import RunError
from engine.monitor.measured import Calibration, beside_plan, calibrate, measure, recall, remember
from engine.plan.layout import Layout
from engine.plan.plan import Plan
from tests.monitor.simulated import healthy

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
    first = calibrate(measure(records(100)), PLAN, "gpt-oss-20b")
    assert (first.device, first.world_size, first.layout) == ("H100", 8, "TP1 PP1 EP8 DP8")
    remember(first, path)
    remember(replace(first, speed_ratio=0.5, t=first.t + 1), path)
    remember(replace(first, model="gpt-oss-120b"), path)
    kept = {one.model: one for one in recall(path)}
    assert len(kept) == 2 and kept["gpt-oss-20b"].speed_ratio == 0.5


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 99, "measured": []}', '{"version": 1, "measured": [{"x": 1}]}']
)
def test_a_file_that_is_not_ours_tells_nothing(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    assert recall(path) == ()


def test_the_number_kept_is_bounded(tmp_path):
    path = tmp_path / "calibration.json"
    one = Calibration(device="H100", world_size=8, model="m", layout="TP1", speed_ratio=1.0, memory_ratio=1.0, t=0.0)
    old = [{**json.loads(json.dumps({k: getattr(one, k) for k in one.__slots__})), "model": f"m{i}", "t": i}
           for i in range(300)]  # fmt: skip
    path.write_text(json.dumps({"version": 1, "measured": old}))
    remember(replace(one, t=1000.0), path)
    assert len(recall(path)) == 200 and recall(path)[-1].t == 1000.0


def test_a_place_that_cannot_be_written_is_said():
    one = calibrate(measure(records(100)), PLAN, "gpt-oss-20b")
    with pytest.raises(RunError, match="cannot be written"):
        remember(one, Path("/proc/nowhere/calibration.json"))
