"""Comparing runs, CSV, the report."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.monitor import history
from engine.monitor.alerts import replay
from engine.monitor.history import RunRecord
from engine.settings import Settings
from tests.monitor.simulated import SICK, healthy, with_resume

REHEARSAL = Path(__file__).parent.parent / "captured" / "rehearsal"


def run_of(records, name="first", **values) -> RunRecord:
    settings = Settings().with_values({"training.global_batch": 16, "training.sequence_length": 128} | values)
    return RunRecord(
        name=name, settings=settings, records=tuple(records), status="finished", message="all steps are done"
    )


@pytest.fixture
def rehearsal() -> RunRecord:
    lines = [line for name in ("events", "metrics") for line in (REHEARSAL / f"{name}.jsonl").read_text().splitlines()]
    records = sorted((json.loads(line) for line in lines), key=lambda record: record["t"])
    return run_of(records, "rehearsal", **{"training.iterations": 60, "model.name": "tiny"})


def test_parts_of_one_iteration_are_joined(rehearsal):
    joined = history.iterations_of(rehearsal.records)
    assert [record["iteration"] for record in joined] == list(range(1, 61))
    assert "loss" in joined[59] and "validation_loss" in joined[59]


def test_a_repeated_iteration_counts_as_last_time():
    records = list(with_resume(500, 400))
    joined = history.iterations_of(records)
    assert [record["iteration"] for record in joined] == list(range(1, 1001))
    last_450 = [record for record in records if record.get("iteration") == 450 and "loss" in record][-1]
    assert joined[449] is last_450


def test_curves_by_iteration_tokens_and_time(rehearsal):
    by_iteration, by_tokens, by_time = (history.curve(rehearsal, "loss", by) for by in history.AXES)
    assert by_iteration[0][0] == 1 and by_iteration[-1][0] == 60
    assert by_tokens[0][0] == 16 * 128 and by_tokens[-1][0] == 60 * 16 * 128
    assert by_time == sorted(by_time) and 15 < by_time[-1][0] < 60
    assert [value for _, value in by_tokens] == [value for _, value in by_iteration]


def test_time_counts_work_and_not_the_night_between():
    straight = history.curve(run_of(healthy(1000)), "loss", "time")[-1][0]
    resumed = history.curve(run_of(with_resume(500, 400)), "loss", "time")[-1][0]
    assert resumed == pytest.approx(straight, rel=0.05)


def test_two_runs_side_by_side():
    long, short = run_of(healthy(400)), run_of(healthy(200), "second")
    rows = history.compare([long, short], "loss", "iteration", rows=5)
    assert [row[0] for row in rows] == [1, 101, 200, 300, 400]
    assert rows[0][1] == rows[0][2] == long.records[0]["loss"]
    assert rows[2][2] == short.records[-1]["loss"] and rows[3][2] is None and rows[3][1] is not None


def test_tokens_align_runs_of_other_batch_sizes():
    small = run_of({**r, "consumed_samples": r["iteration"] * 16} for r in healthy(400))
    large = run_of(({**r, "consumed_samples": r["iteration"] * 64} for r in healthy(100)), "large",
                   **{"training.global_batch": 64})  # fmt: skip
    rows = history.compare([small, large], "loss", "tokens", rows=3)
    assert rows[-1][0] == 400 * 16 * 128 and None not in rows[-1]


def test_comparing_what_nobody_measured_gives_nothing():
    assert history.compare([run_of(healthy(10))], "colour", "iteration") == []
    assert history.compare([run_of([])], "loss", "tokens") == []


def test_only_differing_settings_are_listed():
    runs = [run_of([]), run_of([], "second", **{"training.learning_rate": 3e-4})]
    assert history.differing_settings(runs) == [("training.learning_rate", [1e-5, 3e-4])]


def test_csv_holds_every_iteration(rehearsal):
    rows = list(csv.DictReader(io.StringIO(history.to_csv(rehearsal))))
    assert len(rows) == 60
    assert list(rows[0])[:3] == ["iteration", "t", "loss"]
    assert float(rows[58]["loss"]) == pytest.approx(5.091579, abs=1e-5) and rows[58]["validation_loss"] == ""


def test_the_report_is_one_page_with_the_facts(rehearsal):
    page = history.to_markdown(rehearsal)
    assert page.startswith("# rehearsal\n")
    assert "| iterations | 60 of 60 |" in page and "| checkpoints | 3 |" in page
    assert "6.2539 → 5.1052" in page and "| model.name | `tiny` |" in page
    assert len(page.splitlines()) < 80


def test_the_report_lists_alerts():
    _, make = SICK["spike"]
    records = list(make())
    alerts = [alert.to_json() for alert in replay(records)]
    page = history.to_markdown(run_of([*records, *alerts]))
    assert "## Alerts" in page and "the loss jumped to" in page


def test_an_empty_run_has_a_report_too():
    page = history.to_markdown(replace(run_of([]), status="failed", message=""))
    assert "| iterations | 0 of" in page


def test_a_sparkline_follows_the_curve():
    assert history.sparkline([8.0, 6.0, 4.0, 2.0, 1.0]) == "█▆▄▂▁"
    assert history.sparkline([3.0, 3.0]) == "▁▁" and history.sparkline([]) == ""
    assert len(history.sparkline([float(i) for i in range(1000)])) == 48
