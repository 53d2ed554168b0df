"""Alerts over simulated and recorded runs: every planted fault, and nothing on healthy ones."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from engine.findings import Severity
from engine.monitor.alert import Facts, facts_of
from engine.monitor.alerts import AlertWatch, replay
from engine.settings import Settings
from tests.monitor.simulated import HEALTHY, SICK, healthy, with_nan_loss, with_spike

REHEARSAL = Path(__file__).parent.parent / "captured" / "rehearsal"


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_said_of_healthy_runs(name, seed):
    assert replay(HEALTHY[name](seed)) == []


@pytest.mark.parametrize("name", SICK)
def test_every_planted_fault_is_found(name):
    key, make = SICK[name]
    found = [alert for alert in replay(make()) if alert.key == key]
    assert len(found) >= 1
    for alert in found:
        assert alert.message and alert.evidence and alert.cause and alert.next_step


@pytest.mark.parametrize("name", SICK)
def test_a_fault_is_said_once(name):
    key, make = SICK[name]
    assert len([alert for alert in replay(make()) if alert.key == key]) == 1


def test_faults_are_told_at_once():
    [nan] = replay(with_nan_loss(700))
    assert nan.iteration == 700 and nan.severity is Severity.ERROR
    [spike] = replay(with_spike(700))
    assert spike.iteration == 700 and "usual 3.3" in spike.evidence


def test_the_recorded_rehearsal_is_healthy():
    lines = [line for name in ("events", "metrics") for line in (REHEARSAL / f"{name}.jsonl").read_text().splitlines()]
    records = [json.loads(line) for line in lines]
    records.sort(key=lambda record: record["t"])
    assert len(records) == 132
    assert replay(records) == []
    assert replay(records, Facts(iterations=60, checkpoint_interval=20, evaluation_interval=20)) == []


def test_the_recorded_divergence_is_told_within_its_first_iterations():
    text = (REHEARSAL.parent / "diverging" / "metrics.jsonl").read_text()
    [alert] = replay(json.loads(line) for line in text.splitlines())
    assert alert.key == "loss.divergence" and alert.iteration == 36 and "best 6.269" in alert.evidence


def test_the_settings_announce_checkpoints():
    facts = facts_of(Settings().with_values({"training.checkpoint_interval": 100}))
    assert [alert.key for alert in replay(healthy(300), facts)] == ["checkpoint.missing"]


def test_invented_data_need_not_be_learnt():
    _, make = SICK["no learning"]
    assert replay(make(), Facts(learns=False)) == []


def test_a_second_spike_is_told_again_but_not_the_same_one():
    first = list(itertools.islice(with_spike(300), 700))
    spikes = list(itertools.islice(with_spike(900), 700, None))
    assert [alert.iteration for alert in replay(first + spikes) if alert.key == "loss.spike"] == [300, 900]


def test_records_that_make_no_sense_do_no_harm():
    watch = AlertWatch()
    for record in (
        {"t": 1.0},
        {"t": 2.0, "iteration": "3", "loss": "high"},
        {"t": 3.0, "iteration": 1, "loss": -5.0, "iteration_s": 0},
        {"t": 4.0, "iteration": 2, "loss": True, "nan_iterations": None},
        {"kind": "phase"},
        {"t": "soon", "iteration": 3, "loss": 1.0},
    ):
        assert watch.feed(record) == []


def test_the_work_per_record_does_not_grow():
    """Time for the same number of records, early and late in a long run."""
    records = list(healthy(24_000, scatter=0.05))
    watch = AlertWatch()

    def seconds(part: list[dict[str, object]]) -> float:
        began = time.process_time()
        for record in part:
            watch.feed(record)
        return time.process_time() - began

    seconds(records[:2000])
    early = seconds(records[2000:6000])
    seconds(records[6000:20_000])
    assert seconds(records[20_000:]) < 3 * early
