"""The seven stations of the set-up: what belongs to each, and how each stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from engine import answers
from engine.options import Option
from engine.settings import OPTIONS
from gptoss_tui import draft as drafts
from gptoss_tui.bridge import Failure
from gptoss_tui.draft import Draft


class Standing(StrEnum):
    """How a station stands."""

    UNSEEN = "not seen yet"
    DONE = "done"
    NEEDS_YOU = "needs you"
    PROBLEM = "problem"


SHAPES = {Standing.UNSEEN: "○", Standing.DONE: "✓", Standing.NEEDS_YOU: "!", Standing.PROBLEM: "✗"}
STYLES = {
    Standing.UNSEEN: "muted",
    Standing.DONE: "good",
    Standing.NEEDS_YOU: "warning",
    Standing.PROBLEM: "bad",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """One stop of the set-up."""

    key: str
    title: str
    tables: tuple[str, ...]
    """Tables of the settings whose options are asked for here."""
    intro: str

    @property
    def options(self) -> tuple[Option, ...]:
        return tuple(option for option in OPTIONS.values() if option.table in self.tables)


STATIONS = (
    Station(key="machine", title="Machine", tables=("machine",), intro="What the run may use of this machine."),
    Station(key="model", title="Model", tables=("model",), intro="What is trained, and from which weights."),
    Station(key="data", title="Data", tables=("data",), intro="What it learns from."),
    Station(
        key="training",
        title="Training",
        tables=("training", "finetune"),
        intro="How long, in which portions, how boldly.",
    ),
    Station(key="layout", title="Layout", tables=("layout",), intro="How the GPUs share the model."),
    Station(key="launch", title="Launch", tables=("launch", "output"), intro="How it starts, and what it leaves."),
    Station(key="review", title="Review", tables=(), intro="All of it, before anything starts."),
)
BY_KEY = {station.key: station for station in STATIONS}


def station_of(option: Option) -> Station:
    """The station where an option is asked for."""
    return next(station for station in STATIONS if option.table in station.tables)


def standings(draft: Draft, seen: Iterable[str], failure: Failure | None) -> dict[str, Standing]:
    """How every station stands, by its key."""
    seen = set(seen)
    found = {station.key: Standing.DONE if station.key in seen else Standing.UNSEEN for station in STATIONS}
    if failure is not None:
        found["review"] = Standing.PROBLEM
        # A plan that names no option contradicts the layout more often than anything else.
        named = drafts.option_named_in(f"{failure.message} {failure.hint}")
        found[station_of(named).key if named else "layout"] = Standing.PROBLEM
    for key in answers.missing(draft.settings):
        found[station_of(OPTIONS[key]).key] = Standing.NEEDS_YOU
    for key in draft.problems:
        found[station_of(OPTIONS[key]).key] = Standing.PROBLEM
    if draft.problems or answers.missing(draft.settings):
        found["review"] = Standing.NEEDS_YOU
    return found
