"""What the settings lead to: whether it fits, how fast, how long, and why so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textual.timer import Timer

from engine.machine import Machine
from engine.plan.plan import Plan
from engine.settings import Settings
from gptoss_tui import words
from gptoss_tui.bridge import Failure
from gptoss_tui.widgets.canvas import Canvas, Row, heading
from gptoss_tui.widgets.note import wrap
from gptoss_tui.widgets.plan_tables import rows_for
from gptoss_tui.widgets.steps import bar

_VERDICTS = {
    "SAFE": ("✓ fits", "good"),
    "TIGHT": ("! tight", "warning"),
    "OUT OF MEMORY": ("✗ out of memory", "bad"),
    "INVALID": ("✗ not possible", "bad"),
}
_SEVERITY_MARKS = {"error": ("✗ ", "bad"), "warning": ("! ", "warning"), "info": ("· ", "muted")}

PATIENCE_S = 0.2
"""A plan that comes sooner replaces the old one without a word."""


class Consequence(Canvas):
    """The plan for the draft, or what stands in its way; the most important lines first."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._settings = Settings()
        self._outcome: Plan | Failure | None = None
        self._missing: tuple[str, ...] = ()
        self._station = ""
        self._machine: Machine | None = None
        self._is_stale = False
        self._planned: Plan | None = None
        self._change = ""
        self._patience = Timer(self, PATIENCE_S)

    def show(self, settings: Settings, outcome: Plan | Failure | None, missing: tuple[str, ...] = ()) -> None:
        """Show a plan, a failure, or that planning goes on (None); `missing` says what is still to be given."""
        self._settings, self._outcome, self._missing, self._is_stale = settings, outcome, missing, False
        self._patience.stop()
        if isinstance(outcome, Plan):
            if self._planned is not None and outcome != self._planned:
                self._change = change(self._planned, outcome)
            self._planned = outcome
        self.redraw()

    def show_alternatives(self, plan: Plan) -> None:
        """Show the same plan with the alternatives to it."""
        self._outcome = self._planned = plan
        self.redraw()

    def show_for(self, station: str, machine: Machine | None) -> None:
        """Add what belongs to `station`: the GPUs, or the memory of each stage and other layouts."""
        self._station, self._machine = station, machine
        self.redraw()

    def expect(self) -> None:
        """A new plan is on its way; only one that takes long is told about."""
        self._is_stale = True
        self._patience.stop()
        self._patience = self.set_timer(PATIENCE_S, self.redraw)

    def redraw(self) -> None:
        width, height = self.content_size
        if not width or not height:
            return
        right: Row = (("planning …", "muted"),) if self._is_stale or self._outcome is None else ()
        rows = [heading("consequence", right, width), *self._rows_for(width)]
        self.paint(rows[:height] + [()] * (height - len(rows)))

    def _rows_for(self, width: int) -> list[Row]:
        rows: list[Row] = []
        for text in self._missing:
            rows += _wrapped(f"! {text}", "warning", width)
        if isinstance(self._outcome, Failure):
            rows += _wrapped(f"✗ {self._outcome.message}", "bad", width)
            return rows + (_wrapped(f"→ {self._outcome.hint}", "text", width) if self._outcome.hint else [])
        if self._outcome is not None:
            own = _wrapped(self._change, "line", width) if self._change else []
            own += rows_for(self._station, self._outcome, self._machine, width)
            rows += plan_rows(self._outcome, self._settings, width, own)
        return rows


def plan_rows(plan: Plan, settings: Settings, width: int, own: Sequence[Row] = ()) -> list[Row]:
    """A plan in rows: verdict, memory, speed and time, the station's `own`, then findings and reasons."""
    estimate = plan.estimate
    verdict, style = _VERDICTS.get(str(estimate.get("verdict")), ("✓ can run", "good"))
    where = f"{plan.world_size} × " + ("CPU rank" if plan.device == "cpu" else str(estimate.get("gpu", "GPU")))
    rows: list[Row] = [((verdict, style), (f"  {where}  {plan.layout}", "text"))]
    rows += _memory_rows(estimate.get("memory") or {}, width)
    rows += _speed_rows(estimate.get("throughput") or {}, settings)
    rows += [*own, ()] if own else []
    for finding in estimate.get("findings", ()):
        mark, mark_style = _SEVERITY_MARKS.get(str(finding.get("severity")), _SEVERITY_MARKS["info"])
        rows += _wrapped(mark + str(finding.get("what", "")), mark_style, width)
        if finding.get("fix"):
            rows += _wrapped(f"→ {finding['fix']}", "text", width)
    rows.append(())
    for reason in plan.reasons:
        rows += _wrapped(reason, "muted", width)
    return rows


def change(old: Plan, new: Plan) -> str:
    """What the last edit did to memory, speed and layout, in one line; empty when to none of them."""
    parts = []
    if old.layout != new.layout:
        parts.append(f"{old.layout} → {new.layout}")
    before, after = (plan.estimate.get("memory") or {} for plan in (old, new))
    key = "peak_gib" if "peak_gib" in after else "ram_gib"
    if key in before and key in after and abs(before[key] - after[key]) >= 0.05:
        parts.append(f"memory {before[key]:.1f} → {after[key]:.1f} GiB")
    slow, fast = ((plan.estimate.get("throughput") or {}).get("tokens_per_s") for plan in (old, new))
    if slow and fast and abs(fast / slow - 1) >= 0.005:
        parts.append(f"speed {fast / slow - 1:+.0%}")
    return "changed: " + ", ".join(parts) if parts else ""


def _memory_rows(memory: Mapping[str, Any], width: int) -> list[Row]:
    used, capacity = memory.get("peak_gib", memory.get("ram_gib")), memory.get("capacity_gib")
    if not used or not capacity:
        return []
    where = "memory" if "peak_gib" in memory else "RAM   "
    style = "bad" if used > capacity else "text"
    size = max(4, min(16, width - 34))
    amount = f" {used:.1f} of {capacity:.1f} GiB"
    return [((f"{where}  ", "muted"), *bar(min(1.0, used / capacity), size), (amount, style))]


def _speed_rows(speed: Mapping[str, Any], settings: Settings) -> list[Row]:
    training = settings.training
    tokens = training.iterations * training.global_batch * training.sequence_length
    rows: list[Row] = [(("tokens  ", "muted"), (words.count(tokens), "text"))]
    if pace := speed.get("iteration_s"):
        told = words.pace(pace)
        rate = f"{words.count(speed.get('tokens_per_s', 0))} tokens/s, {' '.join(told)} an iteration"
        rows.append((("speed   ", "muted"), (rate, "text")))
        total = words.duration(pace * training.iterations)
        rows.append((("takes   ", "muted"), (f"about {total} of training", "text")))
    return rows


def _wrapped(text: str, style: str, width: int) -> list[Row]:
    return [((line, style),) for line in wrap(text, width)]
