"""What a run's supervisor measures: speed and memory for later plans, and its GPUs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from engine import presets, settings_file
from engine.hardware.gpu import Gpu, GpuSample
from engine.machine import Machine
from engine.measurements import recall
from engine.monitor.alert import Facts
from engine.monitor.alerts import AlertWatch
from engine.plan.planner import make_plan
from engine.run import gauges
from engine.run.directory import RunDirectory, read_records
from engine.run.gauges import Gauges
from engine.settings import Settings

GPU_SETTINGS = Settings().with_values({"model.name": "gpt-oss-20b", "training.goal": "pretrain"})
H100 = Gpu(index=0, name="NVIDIA H100 80GB HBM3", memory_total_gib=79.6, compute_capability=(9, 0), nvlinks=18)
DGX = Machine(host="dgx", gpus=tuple(replace(H100, index=i) for i in range(8)))


@pytest.fixture
def make_gauges(tmp_path, monkeypatch):
    """The gauges of a run with its plan on disk, and its directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def make(settings: Settings, machine: Machine) -> tuple[Gauges, RunDirectory, list[str]]:
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        settings_file.save(settings, run.settings)
        run.plan.write_text(make_plan(settings, machine).to_json())
        said: list[str] = []
        return Gauges(run, settings, said.append), run, said

    return make


def rehearsal() -> tuple[Settings, Machine]:
    return presets.find("rehearsal").settings, Machine(host="here", cpu_cores=2, ram_gib=24.0)


def record(n: int, **values: float) -> dict[str, object]:
    return {"t": 1000.0 + n, "step": "train", "iteration": n, "loss": 2.0, "iteration_s": 0.5,
            "tokens_per_s_per_gpu": 4000.0, "memory_gib": 1.0} | values  # fmt: skip


def test_a_settled_run_is_measured_once_and_told(make_gauges):
    gauge, run, said = make_gauges(*rehearsal())
    for n in range(1, 60):
        gauge.feed(record(n))
    [kept] = recall()
    assert (kept.tokens_per_s_per_gpu, kept.memory_gib, kept.model) == (4000.0, 2.0, "tiny")
    [event] = read_records(run.events)
    assert event["message"].startswith("measured 0.5 s an iteration, 4,000 tokens/s on each rank, memory ")
    gauge.feed(record(60, memory_gib=1.5))
    assert recall()[0].memory_gib == 3.0 and len(list(read_records(run.events))) == 1
    assert said == []


def test_a_restart_begins_to_settle_anew(make_gauges):
    gauge, _, _ = make_gauges(*rehearsal())
    for n in range(1, 20):
        gauge.feed(record(n))
    gauge.feed({"t": 1.0, "kind": "step-started", "step": "train", "message": ""})
    for n in range(15, 38):
        gauge.feed(record(n))
    assert recall() == ()
    gauge.feed(record(38))
    gauge.feed(record(39))
    assert len(recall()) == 1


def test_a_state_directory_that_cannot_be_written_ends_nothing(make_gauges, monkeypatch):
    gauge, _, said = make_gauges(*rehearsal())
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    for n in range(1, 40):
        gauge.feed(record(n))
    assert len(said) == 1 and "was not kept: " in said[0]


def samples(**changes: object) -> tuple[GpuSample, ...]:
    usual = {"utilisation_percent": 98, "clock_mhz": 1755, "ecc_uncorrected": 0}
    return tuple(GpuSample(index=i, **({**usual, **changes} if i == 3 else usual)) for i in range(8))


def test_the_gpus_of_the_run_are_read_every_few_seconds(make_gauges, monkeypatch):
    settings = GPU_SETTINGS.with_values({"machine.gpus_per_node": 4, "training.goal": "lora"})
    gauge, _, _ = make_gauges(settings, DGX)
    monkeypatch.setattr(gauges, "sample_gpus", samples)
    assert [one.index for one in gauge.read_gpus()] == [0, 1, 2, 3]
    assert gauge.read_gpus() is None


@pytest.mark.parametrize("launcher", ["slurm", "ssh"])
def test_gpus_elsewhere_are_not_read(make_gauges, monkeypatch, launcher):
    gauge, _, _ = make_gauges(GPU_SETTINGS.with_values({"launch.launcher": launcher}), DGX)
    monkeypatch.setattr(gauges, "sample_gpus", lambda: pytest.fail("nothing is to be read here"))
    assert gauge.read_gpus() is None


def test_a_rehearsal_reads_no_gpu(make_gauges, monkeypatch):
    gauge, _, _ = make_gauges(*rehearsal())
    monkeypatch.setattr(gauges, "sample_gpus", lambda: pytest.fail("nothing is to be read here"))
    assert gauge.read_gpus() is None


def test_new_errors_of_a_gpu_become_an_alert():
    watch = AlertWatch(Facts())
    for n in range(1, 12):
        watch.feed(record(n), 1000.0 + n)
    assert watch.feed_gpus(samples(ecc_uncorrected=1), 1012.0) == []
    [alert] = watch.feed_gpus(samples(ecc_uncorrected=4), 1017.0)
    assert json.loads(json.dumps(alert.to_json()))["key"] == "gpu.ecc"
