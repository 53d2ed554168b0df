"""Comparing runs, CSV, the report."""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from engine.errors import SettingsError
from engine.monitor import exports, history, labels, report
from engine.monitor.alerts import replay
from engine.monitor.history import Beside, RunRecord
from engine.monitor.labels import Labels
from engine.monitor.svg import Curve, line_chart
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


@pytest.mark.parametrize("interval", [1, 10])
def test_a_record_stands_for_all_iterations_since_the_last_one(interval):
    records = [{"t": float(i), "iteration": i, "loss": 1.0, "iteration_s": 2.0} for i in range(interval, 101, interval)]
    # An evaluation between two records and a last iteration that is logged out of turn.
    records.insert(5, {"t": 55.5, "iteration": records[4]["iteration"], "validation_loss": 1.0})
    records.append({"t": 101.0, "iteration": 103, "loss": 1.0, "iteration_s": 2.0})
    run = run_of(records, **{"training.log_interval": interval})
    assert history.summarise(run)["training_s"] == pytest.approx(206.0)
    assert history.curve(run, "loss", "time")[-1][0] == pytest.approx(206.0)


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
    page = report.to_markdown(rehearsal)
    assert page.startswith("# rehearsal\n")
    assert "| iterations | 60 of 60 |" in page and "| checkpoints | 3 |" in page
    assert "6.2539 → 5.1052" in page and "| model.name | tiny |" in page
    assert len(page.splitlines()) < 80


def test_the_report_lists_alerts():
    _, make = SICK["spike"]
    records = list(make())
    alerts = [alert.to_json() for alert in replay(records)]
    page = report.to_markdown(run_of([*records, *alerts]))
    assert "## Alerts" in page and "the loss jumped to" in page


def test_an_empty_run_has_a_report_too():
    page = report.to_markdown(replace(run_of([]), status="failed", message=""))
    assert "| iterations | 0 of" in page


def test_a_sparkline_follows_the_curve():
    assert report.sparkline([8.0, 6.0, 4.0, 2.0, 1.0]) == "█▆▄▂▁"
    assert report.sparkline([3.0, 3.0]) == "▁▁" and report.sparkline([]) == ""
    assert len(report.sparkline([float(i) for i in range(1000)])) == 48


def test_the_page_as_html_needs_no_other_file(rehearsal):
    alert = {"t": 1.0, "kind": "alert", "message": "<script>alert(1)</script>", "evidence": "a & b"}
    html = report.to_html(replace(rehearsal, records=(*rehearsal.records, alert), name="<b>night</b>"))
    assert "&lt;script&gt;" in html and "<script>" not in html and "<b>" not in html
    root = ElementTree.fromstring(html.partition("\n")[2].replace('<meta charset="utf-8">', ""))
    assert [one.tag for one in root.iter() if one.tag.endswith("svg")]
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")


def test_a_page_shows_plan_and_labels(rehearsal):
    beside = (Beside(name="throughput per GPU", unit="tokens/s", planned=5000.0, measured=4500.0),)
    page = report.to_markdown(replace(rehearsal, labels="#good first of its kind", beside=beside))
    assert "5,000 tokens/s: 90% measured" in page and "#good first of its kind" in page


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    """The points of each drawn line."""
    lines = [one.get("d") for one in ElementTree.fromstring(svg).iter() if one.get("stroke-width") == "1.6"]
    return [[tuple(map(float, point.split())) for point in line[1:].split("L")] for line in lines]


def test_a_picture_puts_values_where_they_belong():
    svg = line_chart("loss", [Curve("a", [(0.0, 1.0), (10.0, 3.0), (20.0, 2.0)])])
    [[first, middle, last]] = points_of(svg)
    assert first[0] < middle[0] < last[0] and middle[0] == pytest.approx((first[0] + last[0]) / 2)
    assert middle[1] < last[1] < first[1]  # down is greater in SVG


def test_a_picture_of_a_long_run_is_small_and_keeps_its_spike():
    points = [(float(n), 50.0 if n == 54_321 else 2.0) for n in range(1_000_000)]
    svg = line_chart("loss", [Curve("long", points)])
    assert len(svg) < 100_000
    band = next(one.get("d") for one in ElementTree.fromstring(svg).iter() if one.get("fill-opacity"))
    heights = [float(point.split()[1]) for point in band[1:-1].split("L")]
    assert max(heights) - min(heights) > 150


def test_several_runs_share_a_picture_with_a_legend(rehearsal):
    svg = report.picture([rehearsal, replace(rehearsal, name="other & one")], "loss", "time")
    assert len(points_of(svg)) == 2 and "other &amp; one" in svg
    assert "no values" in report.picture([rehearsal], "colour", "iteration")


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.png", "cairosvg")])
def test_a_format_whose_library_is_missing_is_refused_in_words(rehearsal, tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=f"needs {package}") as caught:
        if name.endswith("png"):
            exports.write_picture("<svg/>", tmp_path / name)
        else:
            exports.write_metrics(rehearsal, tmp_path / name)
    assert f"pip install {package}" in caught.value.hint


def test_a_picture_of_no_known_kind_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="names no kind of picture"):
        exports.write_picture("<svg/>", tmp_path / "a.gif")


def test_labels_come_back_as_written(tmp_path):
    written = Labels(is_archived=True).with_tags(["good", "b200"]).with_note("the first\nwith sinks")
    labels.write(tmp_path, written)
    assert labels.read(tmp_path) == written and written.tags == ("b200", "good")
    assert written.text == "#b200 #good the first with sinks"


@pytest.mark.parametrize("text", ["", "[]", '{"tags": 3}', '{"tags": ["NO"], "note": "", "is_archived": true}', "\xff"])
def test_damaged_labels_are_none(tmp_path, text):
    (tmp_path / labels.FILE_NAME).write_text(text)
    assert labels.read(tmp_path) == Labels()


@pytest.mark.parametrize("tag", ["", "Two Words", "a" * 33, "../x", "$(x)"])
def test_a_word_that_is_no_tag_is_refused(tag):
    with pytest.raises(SettingsError, match="is no tag"):
        Labels().with_tags([tag])
