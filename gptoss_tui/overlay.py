"""Several runs for one chart: their records as series over iterations, tokens or time at work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine import settings_file
from engine.monitor.history import RunRecord, curve, differing_settings
from engine.monitor.series import Series
from engine.options import Value
from engine.run.directory import RunDirectory, read_records
from gptoss_tui import words
from gptoss_tui.metric_names import drawable

MOST_RUNS = 6
"""As many lines as there are colours for."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What the runs are aligned by. A series counts whole places, so each axis has its unit."""

    name: str
    places_per_unit: float
    words: Callable[[float], str]


def _seconds(place: float) -> str:
    return words.duration(place / 1000)


AXES = (
    Axis("iteration", 1.0, words.count),
    Axis("tokens", 1.0, words.count),
    Axis("time", 1000.0, _seconds),
)


def load(runs: Sequence[RunDirectory]) -> list[RunRecord]:
    """The records of the runs. Raises EngineError for one that cannot be read."""
    return [
        RunRecord(
            name=run.name,
            settings=settings_file.load(run.settings),
            records=tuple(one for one in read_records(run.metrics) if isinstance(one.get("t"), (int, float))),
        )
        for run in runs
    ]


def series_of(run: RunRecord, metric: str, axis: Axis) -> Series:
    """One metric of one run along an axis."""
    series = Series()
    for place, value in curve(run, metric, axis.name):
        series.add(round(place * axis.places_per_unit), value)
    return series


def metrics_of(runs: Sequence[RunRecord]) -> list[str]:
    """What any of the runs can show."""
    names = {name for run in runs for record in run.records if "kind" not in record
             for name, value in record.items() if isinstance(value, float)}  # fmt: skip
    return drawable(sorted(names - {"t"}))


def differences(runs: Sequence[RunRecord]) -> list[tuple[str, list[Value]]]:
    """Every setting in which the runs differ, with its value in each."""
    return differing_settings(runs)
