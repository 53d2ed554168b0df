"""The supervisor's measuring: how a training runs beside its plan, and how its GPUs are."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

from engine.errors import EngineError
from engine.machine import GpuSample, sample_gpus
from engine.measurements import remember
from engine.monitor.measured import Measured, Settling, as_measurement, beside_plan
from engine.plan.plan import Plan
from engine.run.directory import RunDirectory
from engine.settings import Settings

GPUS_EVERY_S = 5.0


class Gauges:
    """Keeps what a run measured for later plans, and reads the GPUs that it uses on this machine."""

    def __init__(self, run: RunDirectory, settings: Settings, log: Callable[[str], None]) -> None:
        self._run, self._settings, self._log = run, settings, log
        self._plan: Plan = run.read_plan()
        self._settling = Settling()
        self._next_gpu_look = 0.0
        # What Slurm or ssh started runs elsewhere.
        self._has_gpus = self._plan.device == "gpu" and settings.launch.launcher in ("local", "container")

    def feed(self, record: dict[str, Any]) -> None:
        """Take one record of the run."""
        if record.get("kind") == "step-started" and self._settling.measured is None:
            self._settling = Settling()  # what came before a restart was not settled yet
        is_first = self._settling.measured is None
        if self._settling.feed(record) and (measured := self._settling.measured) is not None:
            self._keep(measured, is_first=is_first)

    def read_gpus(self) -> tuple[GpuSample, ...] | None:
        """A reading of the GPUs of the run; None while it is not time for one, or there are none here."""
        if not self._has_gpus or time.monotonic() < self._next_gpu_look:
            return None
        self._next_gpu_look = time.monotonic() + GPUS_EVERY_S
        return tuple(sample for sample in sample_gpus() if sample.index in self._plan.gpus)

    def _keep(self, measured: Measured, *, is_first: bool) -> None:
        try:
            remember(as_measurement(measured, self._settings, self._plan, platform.node()))
            if is_first:
                self._run.append_event("measured", describe(measured, self._plan), step="train")
        except (EngineError, OSError) as error:
            # A full disk must not end a training.
            self._log(f"what the run measured was not kept: {error}")


def describe(measured: Measured, plan: Plan) -> str:
    """What was measured, beside what was planned, in one line."""
    beside = {one.name: f"{one.ratio:.0%} of the plan" for one in beside_plan(measured, plan)}
    parts = [f"measured {measured.iteration_s:.3g} s an iteration"]
    if speed := measured.tokens_per_s_per_gpu:
        told = beside.get("throughput per GPU")
        each = "GPU" if plan.device == "gpu" else "rank"
        parts.append(f"{speed:,.0f} tokens/s on each {each}" + (f" ({told})" if told else ""))
    if told := beside.get("peak memory"):
        parts.append(f"memory {told}")
    return ", ".join(parts)
