"""What runs on this machine measured, taken into the estimate of a plan.

The same job in the same layout is predicted as it ran. For other jobs of the same model and goal on
the same GPUs the formula's speed is corrected by the usual ratio; their memory is not, because what a
ratio says of one layout says little of another.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from engine.findings import warning
from engine.measurements import Measurement
from engine.plan import memory
from engine.plan.job import Job
from engine.plan.layout import Layout

FORMULA = "formula_"
"""Prefix of the values that the formulas gave, kept beside the corrected ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is planned, as measurements name it."""

    device: str
    job: Job
    layout: Layout

    @property
    def key(self) -> tuple[str, int, str, str, str, str]:
        job = self.job
        return (self.device, self.layout.world_size, job.model.name, job.goal, str(self.layout), job.kind)


def cpu_name(host: str) -> str:
    """The device of a measurement on the CPU."""
    return f"cpu of {host}"


def correct(
    estimate: Mapping[str, Any], subject: Subject, known: Sequence[Measurement]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`estimate` with what was measured, and a sentence for each correction."""
    same = next((one for one in known if one.key == subject.key), None)
    if same is not None:
        return _as_measured(estimate, subject, same)
    device, _, model, goal, *_ = subject.key
    alike = [one for one in known if (one.device, one.model, one.goal) == (device, model, goal)]
    ratios = [one.speed_ratio for one in alike if one.speed_ratio]
    if not ratios or not estimate.get("throughput"):
        return dict(estimate), ()
    ratio = median(ratios)
    jobs = "one job" if len(ratios) == 1 else f"{len(ratios)} jobs"
    return _with_speed(estimate, ratio), (
        f"The speed is the formula's times {ratio:.2f}: {jobs} of {model} measured that on this machine.",
    )


def _as_measured(
    estimate: Mapping[str, Any], subject: Subject, one: Measurement
) -> tuple[dict[str, Any], tuple[str, ...]]:
    found, parts = dict(estimate), []
    speed = found.get("throughput")
    if one.tokens_per_s_per_gpu:
        if speed:
            found = _with_speed(found, one.tokens_per_s_per_gpu / speed["tokens_per_s_per_gpu"])
        else:
            total = one.tokens_per_s_per_gpu * subject.layout.world_size
            found["throughput"] = {
                "tokens_per_s_per_gpu": one.tokens_per_s_per_gpu,
                "tokens_per_s": total,
                "iteration_s": subject.job.tokens / total,
            }
        parts.append(f"{one.tokens_per_s_per_gpu:,.0f} tokens/s on each {'GPU' if speed else 'rank'}")
    taken = found.get("memory")
    if one.memory_gib and taken:
        found["memory"] = {**taken, "peak_gib": one.memory_gib, f"{FORMULA}peak_gib": taken["peak_gib"]}
        if "peak_gb" in taken:
            found["memory"]["peak_gb"] = one.memory_gib * memory.GIB / 1e9
        if "verdict" in found:
            found["verdict"] = memory.verdict(one.memory_gib, taken["capacity_gib"])
            others = [item for item in found["findings"] if item["key"] != "plan.memory"]
            found["findings"] = others if found["verdict"] == memory.SAFE else [_tight(one.memory_gib, taken), *others]
        parts.append(f"{one.memory_gib:.1f} GiB at the peak")
    if not parts:
        return found, ()
    day = time.strftime("%Y-%m-%d", time.localtime(one.t))
    return found, (f"This very job was measured here on {day}: {' and '.join(parts)}.",)


def _tight(peak_gib: float, taken: Mapping[str, Any]) -> dict[str, Any]:
    what = f"this job took {peak_gib:.1f} of {taken['capacity_gib']:.1f} GiB here"
    why = "fragmentation or uneven routing may end the run"
    return warning("plan.memory", what, why, str(taken["way_out"])).to_json()


def _with_speed(estimate: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """Every speed and time times `ratio`, those of the alternatives too, so that they can be compared."""
    speed = estimate["throughput"]
    rates = ("tokens_per_s_per_gpu", "tokens_per_s", "tflops_per_gpu", "mfu")
    found = {
        **estimate,
        "throughput": {
            **speed,
            **{name: speed[name] * ratio for name in rates if name in speed},
            "iteration_s": speed["iteration_s"] / ratio,
            "shares": {name: seconds / ratio for name, seconds in speed.get("shares", {}).items()},
            f"{FORMULA}tokens_per_s_per_gpu": speed["tokens_per_s_per_gpu"],
        },
    }
    found["alternatives"] = [
        {
            **one,
            "iteration_s": one["iteration_s"] / ratio,
            "tokens_per_s_per_gpu": one["tokens_per_s_per_gpu"] * ratio,
        }
        for one in estimate.get("alternatives") or ()
    ]
    return found
