"""What a run has told so far, in the form the monitor draws: series, last values, progress."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine.monitor.record import as_float
from engine.monitor.series import MOST_ITERATIONS, Series
from engine.run.state import State, Status

MAX_METRICS = 64
"""A run logs a dozen metrics; a file that names more is not ours, and must not fill the memory."""
RECENT = 50
"""Iterations that the speed is told from."""
EVENTS = 500

_NOT_METRICS = {"t", "step", "iteration", "of", "rank", "slowest_rank"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step as the monitor shows it."""

    name: str
    status: Status
    done: float = 0
    total: float = 0
    unit: str = ""
    phase: str = ""
    started: float | None = None
    ended: float | None = None
    message: str = ""

    def elapsed_s(self, now: float) -> float | None:
        if self.started is None:
            return None
        return max(0.0, (self.ended or now) - self.started)

    @property
    def share(self) -> float | None:
        """How much is done, 0 to 1; None when the step did not say."""
        if self.status is Status.FINISHED:
            return 1.0
        return min(1.0, self.done / self.total) if self.total > 0 else None


class History:
    """Grows with every batch of the feed; bounded, however long the run is."""

    def __init__(self, iterations: int = 0) -> None:
        self.iterations = iterations
        """Length of the training; 0 when it is not known."""
        self.series: dict[str, Series] = {}
        self.iteration = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self._progress: dict[str, dict[str, Any]] = {}
        self._phases: dict[str, str] = {}
        self._durations: deque[float] = deque(maxlen=RECENT)
        self._last_t: float | None = None

    def add_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        """Take metric records; what is no number, or has no iteration, is passed over."""
        gathered: dict[str, tuple[list[int], list[float]]] = {}
        for record in records:
            iteration = record.get("iteration")
            if type(iteration) is not int or not 0 <= iteration <= MOST_ITERATIONS:
                continue
            for name, value in record.items():
                if name not in _NOT_METRICS and type(value) in (int, float):
                    if name not in gathered:
                        gathered[name] = ([], [])
                    places, values = gathered[name]
                    places.append(iteration)
                    values.append(value if type(value) is float else as_float(value))
            if "loss" in record or "iteration_s" in record:
                self._note_speed(record, iteration)
                self.iteration = iteration
        for name, (places, values) in gathered.items():
            if name in self.series or len(self.series) < MAX_METRICS:
                self.series.setdefault(name, Series()).extend(places, values)

    def add_events(self, records: Iterable[dict[str, Any]]) -> None:
        """Take event records."""
        for record in records:
            step = str(record.get("step", ""))
            if record.get("kind") == "progress":
                self._progress[step] = record
                if step == "train" and record.get("unit") == "iterations":
                    # The prepare step may have set another number than the settings held at the start.
                    total = int(number(record.get("total")))
                    self.iterations = total if 0 < total <= MOST_ITERATIONS else self.iterations
                continue
            if record.get("kind") == "phase":
                self._phases[step] = str(record.get("message", ""))
            if record.get("kind") == "step-started":
                self._progress.pop(step, None)
                self._phases.pop(step, None)
            self.events.append(record)

    def forget_metrics(self) -> None:
        """Start the series anew: their file was replaced."""
        self.series.clear()
        self._durations.clear()
        self.iteration, self._last_t = 0, None

    def last(self, name: str) -> float | None:
        """The newest value of a metric, or None."""
        series = self.series.get(name)
        return series.last if series is not None else None

    @property
    def iteration_s(self) -> float | None:
        """Typical seconds per iteration of late; None until there are some."""
        # The median: a checkpoint or an evaluation makes single iterations much longer.
        return sorted(self._durations)[len(self._durations) // 2] if self._durations else None

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last iteration, or None when that cannot be told."""
        pace = self.iteration_s
        if pace is None or self.iterations <= 0:
            return None
        return max(0, self.iterations - self.iteration) * pace

    def steps(self, state: State | None) -> list[StepView]:
        """The steps of the run with their progress."""
        return [self._view(step) for step in state.steps] if state is not None else []

    def _view(self, step: Any) -> StepView:
        progress = self._progress.get(step.name, {})
        done, total, unit = (
            number(progress.get("done")),
            number(progress.get("total")),
            progress.get("unit", ""),
        )
        if step.name == "train" and (self.iterations or self.iteration) and step.started is not None:
            done, total, unit = self.iteration, self.iterations, "iterations"
        return StepView(
            name=step.name,
            status=step.status,
            done=done,
            total=total,
            unit=str(unit),
            phase=self._phases.get(step.name, ""),
            started=step.started,
            ended=step.ended,
            message=step.message,
        )

    def _note_speed(self, record: dict[str, Any], iteration: int) -> None:
        told, t = number(record.get("iteration_s")), record.get("t")
        if told > 0:
            self._durations.append(told)
        elif isinstance(t, (int, float)) and self._last_t is not None and iteration > self.iteration:
            # Clocks are set back now and then; an interval below zero says nothing.
            if (passed := (t - self._last_t) / (iteration - self.iteration)) > 0:
                self._durations.append(passed)
        self._last_t = t if isinstance(t, (int, float)) else None


def number(value: object) -> float:
    """A finite number as it is; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return 0.0
    found = as_float(value)
    return found if math.isfinite(found) else 0.0
