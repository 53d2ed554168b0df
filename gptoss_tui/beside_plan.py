"""What a run's measurements are compared with: its plan, and what was published for the same GPUs."""

from __future__ import annotations

from typing import Any

from engine.plan.calibration import published_beside
from engine.plan.plan import Plan
from gptoss_tui.widgets.chart import Level


def levels(metric: str, plan: Plan | None) -> tuple[Level, ...]:
    """The planned value of a metric, then the published one, as far as there are any."""
    if plan is None:
        return ()
    speed, memory = _table(plan, "throughput"), _table(plan, "memory")
    found = {
        "tokens_per_s": speed.get("tokens_per_s"),
        "tokens_per_s_per_gpu": speed.get("tokens_per_s_per_gpu"),
        "tflops_per_gpu": speed.get("tflops_per_gpu"),
        "iteration_s": speed.get("iteration_s"),
        # On a CPU the plan speaks of the whole machine, a record of one rank.
        "memory_gib": memory.get("peak_gib") if plan.device == "gpu" else None,
    }.get(metric)
    planned = (Level("plan", float(found)),) if isinstance(found, (int, float)) and found > 0 else ()
    return (*planned, *_published(metric, plan))


def share_of_plan(metric: str, value: float | None, plan: Plan | None) -> float | None:
    """A measured value over the planned one."""
    planned = next((level.value for level in levels(metric, plan) if level.title == "plan"), None)
    return value / planned if value is not None and planned else None


def peak_tflops(plan: Plan | None) -> float | None:
    """The dense bf16 peak of the run's GPUs, as the plan took it."""
    speed = _table(plan, "throughput") if plan is not None else {}
    share, reached = speed.get("mfu"), speed.get("tflops_per_gpu")
    return float(reached / share) if share and reached else None


def _published(metric: str, plan: Plan) -> tuple[Level, ...]:
    facts = plan.estimate
    if plan.device != "gpu" or metric not in ("tokens_per_s", "tokens_per_s_per_gpu"):
        return ()
    model, goal, gpu = (str(facts.get(name)) for name in ("model", "goal", "gpu"))
    row = published_beside(model, goal, gpu, plan.world_size, int(facts.get("sequence_length") or 4096))
    if row is None:
        return ()
    scale = plan.world_size if metric == "tokens_per_s" else 1
    return (Level("published", row.tokens_per_s_per_gpu * scale),)


def _table(plan: Plan, name: str) -> dict[str, Any]:
    value = plan.estimate.get(name)
    return value if isinstance(value, dict) else {}
