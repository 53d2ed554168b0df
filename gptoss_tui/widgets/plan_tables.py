"""What only one station shows of a plan: the GPUs, the memory of each pipeline stage, other layouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.machine import Machine
from engine.plan.plan import Plan
from gptoss_tui import words
from gptoss_tui.widgets.canvas import Row
from gptoss_tui.widgets.note import wrap
from gptoss_tui.widgets.steps import bar

_PARTS = (
    ("w", "weights", ("weights_gib",), "line"),
    ("g", "gradients", ("gradients_gib",), "text"),
    ("o", "optimizer", ("optimizer_gib",), "line"),
    ("a", "activations", ("activations_gib", "expert_activations_gib", "logits_gib", "working_gib"), "text"),
    ("f", "fixed", ("fixed_gib",), "muted"),
)
"""Letters and no shades: they need neither colour nor Unicode."""


def rows_for(station: str, plan: Plan, machine: Machine | None, width: int) -> list[Row]:
    """The rows that belong to `station`; none for most of them."""
    if station == "machine" and machine is not None:
        return _gpu_rows(machine, width)
    if station == "layout":
        return [*_stage_rows(plan.estimate.get("memory") or {}, width), *_other_layouts(plan, width)]
    return []


def _gpu_rows(machine: Machine, width: int) -> list[Row]:
    size = max(4, min(16, width - 28))
    rows: list[Row] = [()] if machine.gpus else []
    for gpu in machine.gpus:
        share = gpu.memory_used_gib / gpu.memory_total_gib if gpu.memory_total_gib else 0.0
        amount = f" {gpu.memory_used_gib:5.1f} of {gpu.memory_total_gib:.1f} GiB"
        rows.append(((f"GPU {gpu.index:<2} ", "muted"), *bar(share, size), (amount, "text")))
    return rows


def _stage_rows(memory: Mapping[str, Any], width: int) -> list[Row]:
    stages, capacity = memory.get("stages") or (), memory.get("capacity_gib")
    if not stages or not capacity:
        return []
    size = max(10, min(40, width - 18))
    rows: list[Row] = [()]
    for stage in stages:
        pieces: list[tuple[str, str]] = [(f"stage {stage['stage']:<2} ", "muted")]
        filled, amount = 0, 0.0
        for letter, _, terms, style in _PARTS:
            amount += sum(stage.get(term, 0.0) for term in terms)
            cells = min(size, round(amount / capacity * size)) - filled
            pieces.append((letter * cells, style))
            filled += cells
        pieces += [("·" * (size - filled), "rule"), (f" {stage['total_gib']:.1f} GiB", "text")]
        rows.append(tuple(pieces))
    legend = "  ".join(f"{letter}={name}" for letter, name, _, _ in _PARTS)
    return rows + [((line, "muted"),) for line in wrap(legend, width)]


def _other_layouts(plan: Plan, width: int) -> list[Row]:
    others = plan.estimate.get("alternatives") or ()
    rows: list[Row] = [(), (("other layouts", "muted"),)] if others else []
    for other in others:
        sizes = " ".join(f"{name.upper()}{size}" for name, size in other["layout"].items() if size > 1) or "no split"
        pace = f"{words.count(other['tokens_per_s_per_gpu'])} tok/s/GPU"
        text = f"{sizes}, micro batch {other['micro_batch']}: {pace}, {other['peak_gib']:.1f} GiB"
        rows += [((line, "text"),) for line in wrap(text, width)]
    return rows
