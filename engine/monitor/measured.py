"""What a run measured of itself, beside what its plan predicted.

The first iterations compile and allocate; the twenty after them tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from engine.measurements import Measurement
from engine.models import find as find_model
from engine.monitor.alert import number
from engine.monitor.history import Beside, iterations_of
from engine.monitor.metrics import Record
from engine.plan.correction import FORMULA, Subject, cpu_name
from engine.plan.job import from_training
from engine.plan.plan import Plan
from engine.settings import Settings

WARM_UP = 5
"""Records left out at the start."""
COUNT = 20
"""Records that the measurement is taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Medians over the first settled iterations of a run, and its highest memory so far."""

    records: int
    iteration_s: float
    tokens_per_s_per_gpu: float | None
    memory_gib: float | None
    t: float
    """When the last of them was written, unix seconds."""


def measure(records: Iterable[Record]) -> Measured | None:
    """What the records tell, or None while there are too few settled ones."""
    timed = [record for record in iterations_of(records) if number(record, "iteration_s")][WARM_UP:]
    if len(timed) < COUNT:
        return None
    first = timed[:COUNT]
    speeds = [speed for record in first if (speed := number(record, "tokens_per_s_per_gpu"))]
    peaks = [size for record in timed if (size := number(record, "memory_gib"))]
    return Measured(
        records=COUNT,
        iteration_s=median(record["iteration_s"] for record in first),
        tokens_per_s_per_gpu=median(speeds) if speeds else None,
        memory_gib=max(peaks, default=None),
        t=first[-1]["t"],
    )


class Settling:
    """Collects the first records of an attempt until they make a measurement; bounded."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._peak_gib = 0.0
        self.measured: Measured | None = None
        """None until enough settled iterations have come; its memory grows with the run's."""

    def feed(self, record: Record) -> bool:
        """Take one record; True when it made the measurement or changed its memory by a percent."""
        if self.measured is None:
            if "kind" not in record and record.get("step") in (None, "train"):
                self._records.append(record)
                if len(self._records) >= WARM_UP + COUNT:
                    self.measured = measure(self._records)
                    del self._records[: -4 * (WARM_UP + COUNT)]
            return self.measured is not None
        size = number(record, "memory_gib")
        if not size or size <= (self.measured.memory_gib or 0.0) * 1.01:
            return False
        self.measured = replace(self.measured, memory_gib=size)
        return True


def beside_plan(measured: Measured, plan: Plan) -> tuple[Beside, ...]:
    """Each measured quantity that the plan predicted, speed first."""
    found = [
        ("throughput per GPU", "tokens/s", _planned(plan, "throughput", "tokens_per_s_per_gpu"),
         measured.tokens_per_s_per_gpu),
        ("peak memory", "GiB", _planned(plan, "memory", "peak_gib"), _memory_gib(measured, plan)),
    ]  # fmt: skip
    return tuple(
        Beside(name=name, unit=unit, planned=planned, measured=value)
        for name, unit, planned, value in found
        if planned and value
    )


def as_measurement(measured: Measured, settings: Settings, plan: Plan, host: str) -> Measurement:
    """The measurement as it is kept for later plans. Raises SettingsError for a model that is gone."""
    model = find_model(settings)
    job = from_training(settings.training, model, settings.finetune.lora_rank)
    device = str(plan.estimate.get("gpu") or "GPU") if plan.device == "gpu" else cpu_name(host)
    subject = Subject(device=device, job=job, layout=plan.layout)
    memory_gib = _memory_gib(measured, plan)
    # The plan may hold a correction already; what is kept compares with the formula alone.
    speed = _planned(plan, "throughput", f"{FORMULA}tokens_per_s_per_gpu")
    speed = speed or (_planned(plan, "throughput", "tokens_per_s_per_gpu") if plan.device == "gpu" else None)
    peak = _planned(plan, "memory", f"{FORMULA}peak_gib") or _planned(plan, "memory", "peak_gib")
    return Measurement(
        device=device,
        world_size=plan.world_size,
        model=model.name,
        goal=job.goal,
        layout=subject.key[4],
        job=job.kind,
        tokens_per_s_per_gpu=measured.tokens_per_s_per_gpu,
        memory_gib=memory_gib,
        speed_ratio=_ratio(measured.tokens_per_s_per_gpu, speed),
        memory_ratio=_ratio(memory_gib, peak),
        t=measured.t,
    )


def _memory_gib(measured: Measured, plan: Plan) -> float | None:
    # On a CPU the plan speaks of the whole machine, a record of one rank.
    shares = plan.ranks_per_node if plan.device == "cpu" else 1
    return None if measured.memory_gib is None else measured.memory_gib * shares


def _ratio(value: float | None, planned: float | None) -> float | None:
    return value / planned if value and planned else None


def _planned(plan: Plan, group: str, name: str) -> float | None:
    values: Any = plan.estimate.get(group)
    value = values.get(name) if isinstance(values, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else None
