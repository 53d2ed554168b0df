"""What the metrics of a run are called on the screen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricName:
    """A metric in words, with its unit."""

    title: str
    unit: str = ""


_NAMES = {
    "loss": MetricName("loss"),
    "tokens_per_s": MetricName("throughput", "tokens/s"),
    "grad_norm": MetricName("gradient norm"),
    "learning_rate": MetricName("learning rate"),
    "iteration_s": MetricName("iteration time", "s"),
    "tflops_per_gpu": MetricName("compute per GPU", "TFLOP/s"),
    "tokens_per_s_per_gpu": MetricName("throughput per GPU", "tokens/s"),
    "memory_gib": MetricName("memory of a rank", "GiB"),
    "load_balance": MetricName("busiest expert", "x the mean"),
    "load_balance_least": MetricName("idlest expert", "x the mean"),
    "load_balance_loss": MetricName("MoE load balance loss"),
}
"""In the order in which `c` walks through them."""

_NOT_DRAWN = {"validation_loss", "consumed_samples", "skipped", "nan_iterations"}
"""Drawn over the loss, or counters that are shown as facts."""


def name_of(metric: str) -> MetricName:
    """The words for a metric; an unknown one is its own name."""
    return _NAMES.get(metric) or MetricName(metric.replace("_", " "))


def drawable(present: list[str]) -> list[str]:
    """The metrics a chart can show, in a fixed order; the loss always, even before its first value."""
    known = [name for name in _NAMES if name in present or name == "loss"]
    return known + sorted(name for name in present if name not in _NAMES and name not in _NOT_DRAWN)


_PLACES = (
    ("tokens_per_s", "tokens_per_s_per_gpu", "tflops_per_gpu", "iteration_s"),
    ("loss",),
    ("learning_rate",),
    ("grad_norm",),
)
"""What the charts beside one another show: of each the first that the training tells."""


def chart_metrics(chosen: str, present: Collection[str], count: int) -> list[str]:
    """The metrics of `count` charts, `chosen` in the first; none comes twice."""
    shown = [chosen]
    for place in _PLACES:
        told = [name for name in place if name in present] or list(place)
        if told[0] not in shown:
            shown.append(told[0])
    return shown[:count]
