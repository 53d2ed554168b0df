"""What the monitor sees without a record: silence, a gone process, GPUs, a filling disk."""

from __future__ import annotations

import itertools

import pytest

from engine.hardware.gpu import GpuSample
from engine.monitor.alert import Facts
from engine.monitor.alerts import AlertWatch
from tests.monitor.simulated import START, healthy


def watch_of(iterations: int, facts: Facts | None = None, **options: object) -> tuple[AlertWatch, float]:
    """A watch that has seen `iterations` of a healthy run, and the time of the last."""
    watch = AlertWatch(facts, began=START)
    t = START
    for record in healthy(iterations, **options):
        t = record["t"]
        assert watch.feed(record, t) == []
    return watch, t


def keys(alerts: list) -> list[str]:
    return [alert.key for alert in alerts]


def test_silence_is_a_stall_and_said_once():
    watch, t = watch_of(200)
    assert watch.tick(t + 200) == []
    [alert] = watch.tick(t + 301)
    assert alert.key == "stall" and alert.iteration == 200 and "usually 1.0 s apart" in alert.evidence
    assert watch.tick(t + 400) == []


def test_after_a_stall_that_ended_another_one_is_told():
    watch, t = watch_of(200)
    assert keys(watch.tick(t + 400)) == ["stall"]
    watch.feed({"t": t + 401, "step": "train", "iteration": 201, "loss": 2.0}, t + 401)
    assert keys(watch.tick(t + 1200)) == ["stall"]


def test_the_limit_follows_the_pace():
    watch, t = watch_of(100, seconds=120.0)
    assert watch.tick(t + 700) == []
    # The first iteration of the run took long; it counts among the gaps.
    assert keys(watch.tick(t + 3700)) == ["stall"]


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "phase", "message": "evaluating"},
        {"kind": "phase", "message": "saving the checkpoint of iteration 200"},
    ],
)
def test_announced_pauses_may_take_longer(record):
    watch, t = watch_of(200)
    watch.feed({"t": t, "step": "train", **record}, t)
    assert watch.tick(t + 800) == []
    assert keys(watch.tick(t + 1000)) == ["stall"]


def test_due_pauses_may_take_longer():
    watch, t = watch_of(200, Facts(evaluation_interval=100))
    assert watch.tick(t + 800) == []
    watch, t = watch_of(210, Facts(evaluation_interval=100))
    assert keys(watch.tick(t + 100)) == ["stall"]


def test_the_first_iteration_is_awaited_longer():
    watch = AlertWatch(began=START)
    assert watch.tick(START + 2000) == []
    assert keys(watch.tick(START + 3000)) == ["stall"]


@pytest.mark.parametrize("kind", ["finished", "step-finished", "step-stopped", "stopped"])
def test_after_the_end_silence_is_fine(kind):
    watch, t = watch_of(200)
    watch.feed({"t": t, "step": "train", "kind": kind, "message": "done"}, t)
    assert watch.tick(t + 100_000) == []


def test_a_gone_process_is_said_once():
    watch, t = watch_of(50)
    [alert] = watch.tick(t + 1, is_alive=False)
    assert alert.key == "process.gone" and alert.iteration == 50
    assert watch.tick(t + 2, is_alive=False) == []


def gpus(**changes: object) -> list[GpuSample]:
    """Eight busy GPUs, the fourth with `changes`."""
    usual = {"utilisation_percent": 98, "clock_mhz": 1755}
    return [GpuSample(index=i, **({**usual, **changes} if i == 3 else usual)) for i in range(8)]


def gpu_alerts(samples: list[GpuSample], seconds: int, iterations: int = 50) -> list[str]:
    watch, t = watch_of(iterations)
    return [a.name for s in range(0, seconds, 2) for a in watch.feed_gpus(samples, t + s)]


def test_busy_gpus_are_fine():
    assert gpu_alerts(gpus(), 600) == []


@pytest.mark.parametrize(
    ("changes", "name", "seconds"),
    [
        ({"utilisation_percent": 0}, "gpu.idle GPU 3", 120),
        ({"throttle_reasons": ("hardware thermal slowdown",)}, "gpu.throttled GPU 3", 60),
        ({"clock_mhz": 900}, "gpu.slow-clock GPU 3", 60),
        ({"error": "GPU is lost"}, "gpu.lost GPU 3", 2),
    ],
)
def test_one_sick_gpu_is_named_once_it_lasts(changes, name, seconds):
    assert gpu_alerts(gpus(**changes), seconds // 2) == []
    assert gpu_alerts(gpus(**changes), seconds + 300) == [name]


def test_a_power_cap_is_how_a_loaded_gpu_runs():
    assert gpu_alerts(gpus(throttle_reasons=("power cap",)), 600) == []


def test_a_gpu_that_is_no_longer_listed_is_lost():
    watch, t = watch_of(50)
    assert watch.feed_gpus(gpus(), t) == []
    rest = [sample for sample in gpus() if sample.index != 5]
    found = [a.name for s in range(1, 20) for a in watch.feed_gpus(rest, t + s)]
    assert found == ["gpu.lost GPU 5"]


def test_one_failed_reading_is_no_loss():
    watch, t = watch_of(50)
    readings = itertools.chain([gpus()], [[]], itertools.repeat(gpus(), 100))
    assert [a for s, samples in enumerate(readings) for a in watch.feed_gpus(samples, t + s)] == []


def test_gpus_may_be_idle_while_the_job_saves():
    watch, t = watch_of(50)
    watch.feed({"t": t, "step": "train", "kind": "phase", "message": "saving the checkpoint of iteration 50"}, t)
    idle = gpus(utilisation_percent=0)
    assert [a for s in range(0, 600, 2) for a in watch.feed_gpus(idle, t + s)] == []


def test_new_memory_errors_are_told_old_ones_not():
    watch, t = watch_of(50)
    assert watch.feed_gpus(gpus(ecc_uncorrected=2), t) == []
    [alert] = watch.feed_gpus(gpus(ecc_uncorrected=4), t + 1)
    assert alert.name == "gpu.ecc GPU 3" and alert.evidence.startswith("2 new")
    assert watch.feed_gpus(gpus(ecc_uncorrected=4), t + 2) == []


def test_the_disk_must_hold_the_next_checkpoint():
    watch = AlertWatch(Facts(checkpoint_gib=273.0))
    assert watch.feed_disk(400.0, 1.0) == []
    [alert] = watch.feed_disk(280.0, 2.0)
    assert alert.key == "disk.full" and "280.0 GiB free" in alert.evidence
    assert watch.feed_disk(270.0, 3.0) == []  # said
    assert watch.feed_disk(500.0, 4.0) == []
    assert keys(watch.feed_disk(100.0, 5.0)) == ["disk.full"]


def test_the_size_of_a_checkpoint_is_learnt():
    watch = AlertWatch()
    assert watch.feed_disk(1.0, 1.0) == []
    watch.note_checkpoint(5.0)
    assert keys(watch.feed_disk(1.0, 2.0)) == ["disk.full"]


def test_a_slow_rank_is_named_after_three_reports():
    watch = AlertWatch()
    report = {"t": START, "fastest_rank_s": 5.0, "slowest_rank": 7, "slowest_rank_s": 8.0}
    assert watch.feed(report) == [] and watch.feed({**report, "slowest_rank": 2}) == []
    assert watch.feed(report) == [] and watch.feed(report) == []
    [alert] = watch.feed(report)
    assert alert.name == "rank.slow rank 7"
    assert watch.feed(report) == []


def test_a_clock_ahead_is_told_for_our_own_records_only():
    watch = AlertWatch(began=START)
    record = {"t": START + 500, "step": "train", "iteration": 1, "loss": 2.0}
    assert keys(watch.feed(record, START)) == ["clock.skew"]
    watch = AlertWatch(began=START)
    del record["step"]  # a log's local time, of a machine in another zone
    assert watch.feed(record, START) == []


@pytest.mark.parametrize("name", ["loss", "grad_norm", "iteration_s", "memory_gib", "learning_rate"])
def test_a_whole_number_beyond_every_float_ends_no_watch(name):
    watch, t = watch_of(100)
    watch.feed({"t": t + 1, "step": "train", "iteration": 101, "loss": 2.0, name: 10**400}, t + 1)
    watch.feed({"t": t + 2, "step": "train", "iteration": 102, "loss": 2.0, name: -(10**400)}, t + 2)
    watch.tick(t + 3)
