"""The steps of a run: as a strip of one line, or as a list with bars."""

from __future__ import annotations

from engine.run.state import Status
from gptoss_tui import words
from gptoss_tui.glyphs import STATUS_SHAPES
from gptoss_tui.history import StepView
from gptoss_tui.widgets.canvas import Canvas, Row, Span, cut, fill, heading, width_of

STATUS_STYLES = {
    Status.PENDING: "muted",
    Status.RUNNING: "accent",
    Status.STOPPING: "warning",
    Status.STOPPED: "warning",
    Status.FAILED: "bad",
    Status.FINISHED: "good",
    Status.LOST: "bad",
}


def status_spans(status: Status) -> tuple[Span, Span]:
    """A status as shape and word."""
    style = STATUS_STYLES[status]
    return (STATUS_SHAPES[status], style), (f" {status.value}", style)


def bar(share: float | None, width: int) -> Row:
    """A progress bar; an unknown share is an empty one."""
    filled = round((share or 0.0) * width)
    return (("━" * filled, "line"), ("─" * (width - filled), "rule"))


class StepStrip(Canvas):
    """`✓ prepare 18 s ── ● train 57 % ── ○ export`: the whole path in one line."""

    def show(self, steps: list[StepView], now: float) -> None:
        width = self.content_size.width
        if not width:
            return
        full = self._strip(steps, now, is_short=False)
        self.paint([cut(full if width_of(full) <= width else self._strip(steps, now, is_short=True), width)])

    @staticmethod
    def _strip(steps: list[StepView], now: float, *, is_short: bool) -> Row:
        spans: list[Span] = []
        for step in steps:
            if spans:
                spans.append((" ─ " if is_short else " ── ", "rule"))
            shape, style = STATUS_SHAPES[step.status], STATUS_STYLES[step.status]
            spans += [(f"{shape} ", style), (step.name, "strong" if step.status.is_live else style)]
            if not is_short and (fact := _short_fact(step, now)):
                spans.append((f" {fact}", "muted"))
        return tuple(spans)


class StepList(Canvas):
    """One row a step: shape, name, bar or result, time."""

    def show(self, steps: list[StepView], now: float) -> None:
        width, height = self.content_size
        if not width or not height:
            return
        finished = sum(step.status is Status.FINISHED for step in steps)
        rows = [heading("steps", ((f"{finished} of {len(steps)}", "muted"),), width)]
        rows += [self._row(step, now, width) for step in steps]
        self.paint(rows[:height] + [()] * (height - len(rows)))

    @staticmethod
    def _row(step: StepView, now: float, width: int) -> Row:
        shape, style = STATUS_SHAPES[step.status], STATUS_STYLES[step.status]
        left: Row = ((f"{shape} ", style), (f"{step.name:<8}", "strong" if step.status.is_live else "text"))
        elapsed = step.elapsed_s(now)
        right: Row = ((f"{words.duration(elapsed) if elapsed is not None else '':>8}", "muted"),)
        space = width - width_of(left) - width_of(right) - 1
        if step.status.is_live and step.share is not None:
            percent = f" {words.percent(step.done, step.total):>5}"
            middle: Row = (*bar(step.share, space - len(percent)), (percent, "text"))
        else:
            middle = ((words.shorten(_long_fact(step), space), "bad" if step.status is Status.FAILED else "muted"),)
        return fill((*left, *middle), right, width)


def _short_fact(step: StepView, now: float) -> str:
    if step.status.is_live and step.total:
        return words.percent(step.done, step.total)
    elapsed = step.elapsed_s(now)
    return words.duration(elapsed) if elapsed is not None else ""


def _long_fact(step: StepView) -> str:
    if step.status is Status.PENDING:
        return ""
    if step.status.is_live:
        return step.phase
    return step.message or ("" if step.status is Status.FINISHED else step.status.value)
