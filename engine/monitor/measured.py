"""What a run measured of itself, beside what its plan predicted, kept per machine.

The first iterations compile and allocate; the twenty after them tell. The measurements lie in
`calibration.json` in the state directory, the newest of each machine, model and layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from engine.errors import RunError
from engine.monitor.alert import number
from engine.monitor.history import iterations_of
from engine.monitor.metrics import Record
from engine.paths import state_root, write_atomic
from engine.plan.plan import Plan

WARM_UP = 5
"""Records left out at the start."""
COUNT = 20
"""Records that the measurement is taken from."""
FILE_NAME = "calibration.json"
VERSION = 1
MAX_KEPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Medians over the first settled iterations of a run, and its highest memory so far."""

    records: int
    iteration_s: float
    tokens_per_s_per_gpu: float | None
    memory_gib: float | None
    t: float
    """When the last of them was written, unix seconds."""


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
class Calibration:
    """How one kind of job on one kind of machine compared with its plan."""

    device: str
    """The name of the GPU, or `cpu`."""
    world_size: int
    model: str
    layout: str
    speed_ratio: float | None
    """Measured over planned tokens/s per GPU."""
    memory_ratio: float | None
    """Measured over planned peak memory."""
    t: float

    @property
    def key(self) -> tuple[str, int, str, str]:
        return (self.device, self.world_size, self.model, self.layout)


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


def beside_plan(measured: Measured, plan: Plan) -> tuple[Beside, ...]:
    """Each measured quantity that the plan predicted, speed first."""
    # On a CPU the plan speaks of the whole machine, a record of one rank.
    shares = plan.ranks_per_node if plan.device == "cpu" else 1
    memory_gib = None if measured.memory_gib is None else measured.memory_gib * shares
    found = [
        ("throughput per GPU", "tokens/s", _planned(plan, "throughput", "tokens_per_s_per_gpu"),
         measured.tokens_per_s_per_gpu),
        ("peak memory", "GiB", _planned(plan, "memory", "peak_gib"), memory_gib),
    ]  # fmt: skip
    return tuple(
        Beside(name=name, unit=unit, planned=planned, measured=value)
        for name, unit, planned, value in found
        if planned and value
    )


def calibrate(measured: Measured, plan: Plan, model: str) -> Calibration:
    """The measurement as it is kept."""
    ratios = {one.name: one.ratio for one in beside_plan(measured, plan)}
    device = plan.estimate.get("gpu") if plan.device == "gpu" else plan.device
    return Calibration(
        device=str(device or plan.device),
        world_size=plan.world_size,
        model=model,
        layout=str(plan.layout),
        speed_ratio=ratios.get("throughput per GPU"),
        memory_ratio=ratios.get("peak memory"),
        t=measured.t,
    )


def remember(calibration: Calibration, path: Path | None = None) -> None:
    """Keep a calibration, in place of an older one of the same kind. Raises RunError when it cannot be written."""
    path = path or state_root() / FILE_NAME
    others = [one for one in recall(path) if one.key != calibration.key]
    kept = sorted([*others, calibration], key=lambda one: one.t)[-MAX_KEPT:]
    text = json.dumps({"version": VERSION, "measured": [asdict(one) for one in kept]}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror}", "free some space, or set XDG_STATE_HOME"
        ) from error


def recall(path: Path | None = None) -> tuple[Calibration, ...]:
    """Every calibration that is kept; none from a missing, newer or damaged file."""
    path = path or state_root() / FILE_NAME
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value["version"] > VERSION:
            return ()
        return tuple(Calibration(**item) for item in value["measured"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _planned(plan: Plan, group: str, name: str) -> float | None:
    values: Any = plan.estimate.get(group)
    value = values.get(name) if isinstance(values, Mapping) else None
    return float(value) if isinstance(value, (int, float)) else None
