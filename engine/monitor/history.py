"""Recorded runs side by side: aligned curves, differing settings, rows of metrics.

Works on records and settings at hand; where they lie is the caller's matter.
"""

from __future__ import annotations

import csv
import io
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from engine import secrets, visible
from engine.monitor.alert import number
from engine.monitor.metrics import Record
from engine.options import Value
from engine.settings import OPTIONS, Settings

AXES = ("iteration", "tokens", "time")
_FIRST_COLUMNS = ("iteration", "t", "loss", "validation_loss")
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t")
_NOT_METRICS = {"t", "iteration", "step", "kind", "message", "of", "source"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One quantity as planned and as measured."""

    name: str
    unit: str
    planned: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over planned."""
        return self.measured / self.planned


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run as its files tell it."""

    name: str
    settings: Settings
    records: tuple[Record, ...]
    """Metric and event records in the order in which they were written."""
    status: str = ""
    message: str = ""
    directory: str = ""
    labels: str = ""
    """Tags and note, in one line."""
    beside: tuple[Beside, ...] = ()
    """What was measured beside what was planned."""


def iterations_of(records: Iterable[Record]) -> list[Record]:
    """One record an iteration, in order: the parts joined; an iteration that was repeated counts as last time."""
    joined: dict[int, Record] = {}
    for record in records:
        iteration = record.get("iteration")
        if "kind" in record or not isinstance(iteration, int) or isinstance(iteration, bool):
            continue
        before = joined.get(iteration)
        is_repeat = before is not None and "loss" in before and "loss" in record
        joined[iteration] = record if before is None or is_repeat else {**before, **record, "t": before["t"]}
    return [joined[iteration] for iteration in sorted(joined)]


def curve(run: RunRecord, metric: str, by: str) -> list[tuple[float, float]]:
    """(place, value) of a metric; places are iterations, tokens, or seconds of training since the first iteration."""
    training = run.settings.training
    points: list[tuple[float, float]] = []
    elapsed, last_t = 0.0, None
    records = iterations_of(run.records)
    seconds = seconds_at_work(records, training.log_interval)
    is_timed = any(seconds)
    for record, passed in zip(records, seconds, strict=True):
        # Seconds at work: a stopped run's nights do not count, nor does a clock that was set.
        if passed is None and last_t is not None and not is_timed:
            passed = max(0.0, record["t"] - last_t)
        elapsed, last_t = elapsed + (passed or 0.0), record["t"]
        value = number(record, metric)
        if value is None:
            continue
        if by == "tokens":
            samples = number(record, "consumed_samples")
            samples = record["iteration"] * training.global_batch if samples is None else samples
            points.append((samples * training.sequence_length, value))
        else:
            points.append((elapsed if by == "time" else float(record["iteration"]), value))
    return points


def seconds_at_work(records: Iterable[Record], log_interval: int) -> list[float | None]:
    """How long training took for each record: it stands for all iterations since the last one, at their mean pace."""
    found: list[float | None] = []
    last: int | None = None
    for record in records:
        pace = number(record, "iteration_s")
        if pace is None:
            found.append(None)
            continue
        iteration = record["iteration"]
        found.append(pace * (min(log_interval, iteration) if last is None else iteration - last))
        last = iteration
    return found


def compare(runs: Sequence[RunRecord], metric: str, by: str, rows: int = 20) -> list[list[float | None]]:
    """Rows of place and one value a run, over the stretch that any run covers; None beyond a run's end."""
    curves = [curve(run, metric, by) for run in runs]
    ends = [points[-1][0] for points in curves if points]
    if not ends:
        return []
    start = min(points[0][0] for points in curves if points)
    count = max(2, rows)
    places = sorted({start + (max(ends) - start) * i / (count - 1) for i in range(count)})
    if by == "iteration":
        places = sorted({float(round(place)) for place in places})
    return [[place, *(_value_at(points, place) for points in curves)] for place in places]


def differing_settings(runs: Sequence[RunRecord]) -> list[tuple[str, list[Value]]]:
    """Every setting in which the runs differ, with its value in each."""
    tables = [table.name for table in fields(Settings)]
    differing = {
        name for name in tables if any(getattr(run.settings, name) != getattr(runs[0].settings, name) for run in runs)
    }
    found = [(key, [run.settings.value(key) for run in runs]) for key in OPTIONS if key.partition(".")[0] in differing]
    return [(key, values) for key, values in found if len(set(map(repr, values))) > 1]


def metric_columns(run: RunRecord) -> tuple[list[str], list[Record]]:
    """Every metric's name, the most wanted first, and one record an iteration."""
    records = iterations_of(run.records)
    names = {name for record in records for name in record} - _NOT_METRICS
    return [*_FIRST_COLUMNS, *sorted(names - set(_FIRST_COLUMNS))], records


def to_csv(run: RunRecord) -> str:
    """One line an iteration, every metric a column."""
    columns, records = metric_columns(run)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(record.get(column)) for column in columns] for record in records)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A number as it is; words so that no spreadsheet takes them for a formula."""
    if value is None or isinstance(value, (int, float)):
        return value
    text = visible.clean(secrets.redact(str(value)))
    return f"'{text}" if text[:1] in _BEGINS_FORMULA else text


def summarise(run: RunRecord) -> dict[str, Any]:
    """The numbers of a run that a report begins with."""
    records = iterations_of(run.records)
    losses = [record["loss"] for record in records if "loss" in record]
    validation = [record["validation_loss"] for record in records if "validation_loss" in record]
    pace = sorted(record["iteration_s"] for record in records if number(record, "iteration_s"))
    speed = sorted(record["tokens_per_s"] for record in records if number(record, "tokens_per_s"))
    alerts = [record for record in run.records if record.get("kind") == "alert"]
    return {
        "run": run.name,
        "status": run.status,
        "message": run.message,
        "iterations": records[-1]["iteration"] if records else 0,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "best_loss": min(losses, default=None),
        "first_validation_loss": validation[0] if validation else None,
        "validation_loss": validation[-1] if validation else None,
        "iteration_s": pace[len(pace) // 2] if pace else None,
        "tokens_per_s": speed[len(speed) // 2] if speed else None,
        "memory_gib": max((record["memory_gib"] for record in records if number(record, "memory_gib")), default=None),
        "training_s": sum(filter(None, seconds_at_work(records, run.settings.training.log_interval))),
        "checkpoints": sum(record.get("kind") == "checkpoint" for record in run.records),
        "restarts": sum(record.get("kind") == "restart" for record in run.records),
        "alerts": len(alerts),
    }


def _value_at(points: Sequence[tuple[float, float]], place: float) -> float | None:
    """The value at `place`, on the straight line between its neighbours."""
    if not points or not points[0][0] <= place <= points[-1][0]:
        return None
    after = bisect_right(points, (place, float("inf")))
    left = points[after - 1]
    if after == len(points) or left[0] == place:
        return left[1]
    right = points[after]
    return left[1] + (right[1] - left[1]) * (place - left[0]) / (right[0] - left[0])
