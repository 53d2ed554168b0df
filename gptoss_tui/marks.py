"""What is still open in a set-up, and how every station stands: the one judgement that rail and review show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum

from engine import answers
from engine.findings import Finding, Severity, by_severity, error, warning
from engine.plan.plan import Plan
from engine.settings import OPTIONS
from gptoss_tui.bridge import Failure
from gptoss_tui.draft import Draft, option_named_in
from gptoss_tui.stations import STATIONS, station_of


class Mark(IntEnum):
    """How a station stands, the worst last."""

    UNSEEN = 0
    DONE = 1
    NEEDS_YOU = 2
    """Something is still to be answered, or to be known before the start."""
    PROBLEM = 3
    """A value that is none, or something that would fail."""


SHAPES = {Mark.UNSEEN: "○", Mark.DONE: "✓", Mark.NEEDS_YOU: "!", Mark.PROBLEM: "✗"}
STYLES = {Mark.UNSEEN: "muted", Mark.DONE: "good", Mark.NEEDS_YOU: "warning", Mark.PROBLEM: "bad"}

OPEN = ("value.", "missing.", "plan.failed")
"""How the keys of the points begin without which there is nothing to start."""
_BY_SEVERITY = {Severity.WARNING: Mark.NEEDS_YOU, Severity.ERROR: Mark.PROBLEM}
_PLACES = {
    "checkpoint": "model",
    "container": "launch",
    "data": "data",
    "disk": "launch",
    "finetune": "training",
    "gpu": "machine",
    "hub": "model",
    "launch": "launch",
    "limits": "machine",
    "memory": "machine",
    "network": "launch",
    "packages": "machine",
    "paths": "data",
    "plan": "layout",
    "slurm": "launch",
    "ssh": "launch",
    "training": "training",
    "validation": "training",
}
"""The station that a finding is about, by the first part of its key, where its text names no option."""
_TOLD_BY_TEXT = ("checks", "finetune", "paths", "plan")
"""What these are about is only told by their text."""


def points(draft: Draft, outcome: Plan | Failure | None, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Everything that speaks against a start, or is worth knowing before it, the worst first.

    What was typed and is no value, what is not answered, why there is no plan, what the plan has found, and the
    `findings` of the checks before a start.
    """
    missing = answers.missing(draft.settings)
    found = [error(f"value.{key}", f"{key}: {one.message}", fix=one.hint) for key, one in draft.problems.items()]
    if isinstance(outcome, Failure):
        found.append(error("plan.failed", outcome.message, fix=outcome.hint))
    found += [warning(f"missing.{key}", why) for key, why in missing.items()]
    for one in (*findings, *planned_findings(outcome)):
        # The checks repeat what the plan has found, and find fault with what is not answered.
        if one not in found and not any(key in f"{one.what} {one.fix}" for key in missing):
            found.append(one)
    return by_severity(found)


def planned_findings(outcome: Plan | Failure | None) -> tuple[Finding, ...]:
    """What the plan itself has found."""
    planned = outcome.estimate.get("findings", ()) if isinstance(outcome, Plan) else ()
    return tuple(map(Finding.from_json, planned))


def marks(found: Iterable[Finding], seen: Iterable[str]) -> Mapping[str, Mark]:
    """The mark of every station, by its key, for the points about the draft; `seen` are those one has been at."""
    marked = dict.fromkeys((station.key for station in STATIONS), Mark.UNSEEN) | dict.fromkeys(seen, Mark.DONE)
    for point in found:
        if mark := _BY_SEVERITY.get(point.severity):
            for key in (place_of(point), "review"):  # all of it is told there once more
                marked[key] = max(marked[key], mark)
    return marked


def place_of(point: Finding) -> str:
    """The key of the station that a point is about."""
    kind, _, rest = point.key.partition(".")
    if kind in ("value", "missing"):
        return station_of(OPTIONS[rest]).key
    # What mends it says better where to go than what is wrong.
    named = (option_named_in(point.fix) or option_named_in(point.what)) if _is_told_by_text(point) else None
    # A plan that names no option contradicts the layout more often than anything else.
    return station_of(named).key if named else _PLACES.get(kind, "layout")


def _is_told_by_text(point: Finding) -> bool:
    return point.key.partition(".")[0] in _TOLD_BY_TEXT
