"""What the settings lead to: whether it fits, how fast, how long, and why so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.timer import Timer

from engine.findings import Finding, Severity, for_forms
from engine.machine import Machine
from engine.plan.plan import Plan
from engine.settings import Settings
from gptoss_tui import finding_rows, marks, words
from gptoss_tui.bridge import Failure
from gptoss_tui.stations import BY_KEY
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
PATIENCE_S = 0.2
"""A plan that comes sooner replaces the old one without a word."""


class Consequence(Canvas):
    """The plan for the draft, or what stands in its way; the most important lines first."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._settings = Settings()
        self._outcome: Plan | Failure | None = None
        self._points: tuple[Finding, ...] = ()
        self._station = ""
        self._machine: Machine | None = None
        self._is_stale = False
        self._planned: Plan | None = None
        self._change = ""
        self._patience = Timer(self, PATIENCE_S)

    def show(self, settings: Settings, outcome: Plan | Failure | None, points: tuple[Finding, ...] = ()) -> None:
        """Show a plan, or that planning goes on (None), and everything that is still open."""
        self._settings, self._outcome, self._points, self._is_stale = settings, outcome, points, False
        self._patience.stop()
        if isinstance(outcome, Plan):
            if self._planned is not None and outcome != self._planned:
                self._change = change(self._planned, outcome)
            self._planned = outcome
        self.redraw()

    def show_points(self, points: tuple[Finding, ...]) -> None:
        """Show the same plan with what the checks have found."""
        self._points = points
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
        # What keeps a start from being made, or can be mended at this very station, stands above everything else.
        here = [one for one in self._points if one.severity is not Severity.INFO and self._is_near(one)]
        rest = [one for one in self._points if one not in here]
        plan = self._outcome if isinstance(self._outcome, Plan) else None
        rows: list[Row] = [_verdict(plan)] if plan is not None else []
        for point in here:
            rows += _point(point, width)
        if plan is not None:
            rows += _memory_rows(plan.estimate.get("memory") or {}, width)
            rows += _speed_rows(plan.estimate.get("throughput") or {}, self._settings, width)
            own = _wrapped(self._change, "line", width) if self._change else []
            own += rows_for(self._station, plan, self._machine, width)
            rows += [*own, ()] if own else []
        for point in rest:
            rows += _point(point, width, names_station=True)
        if plan is not None:
            rows.append(())
            for reason in plan.reasons:
                rows += _wrapped(reason, "muted", width)
        return rows

    def _is_near(self, point: Finding) -> bool:
        return point.key.startswith(marks.OPEN) or marks.place_of(point) == self._station


def _verdict(plan: Plan) -> Row:
    estimate = plan.estimate
    verdict, style = _VERDICTS.get(str(estimate.get("verdict")), ("✓ can run", "good"))
    where = f"{plan.world_size} × " + ("CPU rank" if plan.device == "cpu" else str(estimate.get("gpu", "GPU")))
    return ((verdict, style), (f"  {where}  {plan.layout}", "text"))


def _point(point: Finding, width: int, *, names_station: bool = False) -> list[Row]:
    """A point and what mends it; one that another station can mend is told with the station."""
    mark, style = finding_rows.MARKS[point.severity], finding_rows.STYLES[point.severity]
    is_info = point.severity is Severity.INFO
    place = f"{BY_KEY[marks.place_of(point)].title}: " if names_station and not is_info else ""
    rows = _wrapped(f"{mark} {place}{point.what}", "muted" if is_info else style, width)
    return rows + (_wrapped(f"→ {for_forms(point.fix)}", "text", width) if point.fix else [])


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


def _speed_rows(speed: Mapping[str, Any], settings: Settings, width: int) -> list[Row]:
    training = settings.training
    tokens = training.iterations * training.global_batch * training.sequence_length
    rows: list[Row] = [(("tokens  ", "muted"), (words.count(tokens), "text"))]
    if pace := speed.get("iteration_s"):
        told = words.pace(pace)
        rate = f"{words.count(speed.get('tokens_per_s', 0))} tokens/s, {' '.join(told)} an iteration"
        first, *others = wrap(rate, width - len("speed   "))
        rows.append((("speed   ", "muted"), (first, "text")))
        rows += [((f"        {line}", "text"),) for line in others]
        rows.append((("takes   ", "muted"), (f"about {words.rough_duration(pace * training.iterations)}", "text")))
    return rows


def _wrapped(text: str, style: str, width: int) -> list[Row]:
    return [((line, style),) for line in wrap(text, width)]
