"""How the stations stand: what was typed, what is missing, what the plan and the checks have found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.findings import Finding, error, info, warning
from engine.settings import Settings
from gptoss_tui.bridge import Failure
from gptoss_tui.draft import Draft
from gptoss_tui.marks import Mark, marks, place_of, points
from gptoss_tui.stations import STATIONS
from tests.tui.doubles import make_plan

ALL = [station.key for station in STATIONS]


def marked(draft: Draft, outcome=None, findings=(), seen=ALL):
    return marks(points(draft, outcome, findings), seen)


def test_stations_tell_how_they_stand():
    draft = Draft()
    draft.set("training.iterations", "x")
    draft.set("data.source", "text")
    failure = Failure("layout.tp = 3 does not divide", "use 1, 2, 4 or 8")
    found = marked(draft, failure, seen=["machine", "model"])
    assert found["machine"] is Mark.DONE
    assert found["launch"] is Mark.UNSEEN
    assert found["data"] is Mark.NEEDS_YOU
    assert found["training"] is Mark.PROBLEM
    assert found["layout"] is Mark.PROBLEM
    assert found["review"] is Mark.PROBLEM


def test_what_the_plan_and_the_checks_have_found_marks_its_station_and_the_review():
    tight = warning("plan.memory", "the predicted peak is 78 GiB of 79.6 GiB", fix="recompute more")
    plan = replace(make_plan(Settings()), estimate={"findings": [tight.to_json()]})
    full = error("disk.full", "the run writes 900 GiB and 20 are free")
    found = marked(Draft(), plan, [tight, full, info("hub.download", "12 GiB are downloaded")])
    assert (found["layout"], found["launch"], found["model"]) == (Mark.NEEDS_YOU, Mark.PROBLEM, Mark.DONE)
    assert found["review"] is Mark.PROBLEM
    # It is told once, although plan and checks both have it.
    assert [point.key for point in points(Draft(), plan, [tight, full])] == ["disk.full", "plan.memory"]


def test_what_is_not_answered_is_asked_for_and_not_found_fault_with():
    draft = Draft()
    draft.set("data.source", "text")
    absent = error("paths.missing", "data.path = '' is not there or cannot be read")
    assert [point.key for point in points(draft, None, [absent])] == ["missing.data.path"]
    assert marked(draft, None, [absent])["data"] is Mark.NEEDS_YOU


@pytest.mark.parametrize(
    ("point", "station"),
    [
        (error("paths.missing", "model.checkpoint = '/x' is not there"), "model"),
        (error("paths.output", "runs cannot be written to /x", fix="--set output.directory=DIR"), "launch"),
        (error("plan.memory", "the predicted peak is 90 GiB", fix="set training.micro_batch=1"), "training"),
        (error("finetune.source", "training.goal is lora", fix="--set data.source=chat"), "data"),
        (error("training.batch", "training.global_batch is 7"), "training"),
        (error("gpu.too-few", "there are 4 GPUs"), "machine"),
        (error("something.new", "unheard of"), "layout"),
    ],
)
def test_a_finding_is_about_the_station_that_can_mend_it(point: Finding, station: str):
    assert place_of(point) == station
