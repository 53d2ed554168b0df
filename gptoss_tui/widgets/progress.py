"""One line that says what is being done, how much of it, and when it will be over."""

from __future__ import annotations

from engine.run.state import State
from gptoss_tui import words
from gptoss_tui.history import History, StepView
from gptoss_tui.log_file import readable
from gptoss_tui.widgets.canvas import Canvas, Row, fill, width_of
from gptoss_tui.widgets.note import wrap
from gptoss_tui.widgets.steps import STATUS_STYLES, bar

_MOST_BAR_CELLS = 60
_MOST_LINES = 3


class Progress(Canvas):
    """`iteration 34 / 60 ━━━━━━━──── 57 %  0:31 left, at 14:32`."""

    def show(self, state: State, history: History, now: float) -> None:
        width = self.content_size.width
        if not width:
            return
        step = next((step for step in history.steps(state) if step.name == state.step), None)
        if state.status.is_live and step is not None:
            self._paint([self._live(step, history, now, width)])
        else:
            self._paint(self._ended(state, width))

    def _paint(self, rows: list[Row]) -> None:
        self.paint(rows)
        self.fit_height(len(rows))

    @staticmethod
    def _ended(state: State, width: int) -> list[Row]:
        """Why the run is where it is; an error is worth a few lines."""
        lines = wrap(readable((state.message or state.status.value).replace("\n", " ")), width)
        if len(lines) > _MOST_LINES:
            lines = [*lines[: _MOST_LINES - 1], words.shorten(" ".join(lines[_MOST_LINES - 1 :]), width)]
        return [((line, STATUS_STYLES[state.status]),) for line in lines]

    def _live(self, step: StepView, history: History, now: float, width: int) -> Row:
        left = self._what(step)
        right: Row = ()
        if step.total:
            right = ((f" {words.percent(step.done, step.total)}", "strong"),)
        if step.name == "train" and (remaining := history.remaining_s) is not None:
            ends = words.clock(now + remaining, now)
            right = (*right, (f"   {words.duration(remaining)} left, at {ends}", "muted"))
        room = width - width_of(left) - width_of(right) - 1
        if step.total and room >= 8:
            size = min(room, _MOST_BAR_CELLS)
            return (*left, (" ", ""), *bar(step.share, size), *right)
        return fill(left, right, width)

    @staticmethod
    def _what(step: StepView) -> Row:
        if step.name == "train" and step.done and not step.total:
            return (("iteration ", "muted"), (f"{step.done:,.0f}", "strong"))
        if step.total and step.name == "train":
            if not step.done and step.phase:
                # Loading a large model takes minutes, which are no standstill.
                return ((f"{step.phase} …", "text"), (f"  {step.total:,.0f} iterations", "muted"))
            return (
                ("iteration ", "muted"),
                (f"{step.done:,.0f}", "strong"),
                (f" / {step.total:,.0f}", "muted"),
            )
        if step.total:
            amount = f" {words.count(step.done)} of {words.count(step.total)} {step.unit}".rstrip()
            return ((step.phase or step.name, "text"), (amount, "muted"))
        return ((f"{step.phase or step.name} …", "text"),)
