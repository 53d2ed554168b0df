"""Several runs in one chart, aligned by iteration, tokens or time, with the settings in which they differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from textual import on
from textual.binding import Binding
from textual.containers import Vertical
from textual.widget import Widget

from engine.monitor.history import RunRecord
from engine.run.directory import RunDirectory
from gptoss_tui import overlay, words
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.metric_names import name_of
from gptoss_tui.screens.base import CockpitScreen
from gptoss_tui.widgets.canvas import Canvas, Row, cut, heading
from gptoss_tui.widgets.chart import LINE_STYLES, Chart, Line, Picture

_MOST_DIFFERENCES = 12


class CompareScreen(CockpitScreen):
    """Reads the runs once; they are compared as they were when the screen opened."""

    CSS_PATH = "../styles/compare.tcss"
    PLACE = "compare"
    HELP_TEXT = (
        "One line for each run. c goes to the next metric, x aligns them by iteration, by tokens, or by the time at "
        "work; nights between a stop and a resume do not count. The cursor names every run's value."
    )
    BINDINGS = [
        Binding("q", "leave", "Back", id="screen.leave"),
        Binding("c", "next_metric", "Chart", id="compare.chart"),
        Binding("x", "next_axis", "Align by", id="compare.axis"),
    ]

    def __init__(self, runs: Sequence[RunDirectory]) -> None:
        super().__init__()
        self._runs = list(runs)[: overlay.MOST_RUNS]
        self._records: list[RunRecord] = []
        self._metric = "loss"
        self._axis = overlay.AXES[0]

    def compose_body(self) -> Iterable[Widget]:
        with Vertical(id="body"):
            yield Chart(Picture(title="loss"), charset=self.cockpit.charset, id="chart")
            yield Differences(id="differences")

    def on_mount(self) -> None:
        self.query_one("#chart").focus()
        self.ask("records", partial(overlay.load, self._runs))

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if isinstance(answer.value, Failure):
            self.notify(f"{answer.value.message}\n{answer.value.hint}".strip(), severity="error", timeout=10)
            return
        self._records = answer.value
        self._draw()

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw_differences)

    def action_next_metric(self) -> None:
        if metrics := overlay.metrics_of(self._records):
            place = metrics.index(self._metric) if self._metric in metrics else -1
            self._metric = metrics[(place + 1) % len(metrics)]
            self._draw()

    def action_next_axis(self) -> None:
        self._axis = overlay.AXES[(overlay.AXES.index(self._axis) + 1) % len(overlay.AXES)]
        self._draw()

    def _draw(self) -> None:
        if not self._records:
            return
        name, axis = name_of(self._metric), self._axis
        series = [overlay.series_of(run, self._metric, axis) for run in self._records]
        self.query_one("#chart", Chart).show(
            Picture(
                title=f"{name.title} by {axis.name}",
                unit=name.unit,
                series=series[0],
                line_title=self._records[0].name,
                lines=tuple(Line(run.name, one) for run, one in zip(self._records[1:], series[1:], strict=True)),
                axis=axis.name,
                place=axis.words,
                exact_place=axis.words if axis.name == "time" else "{:,.0f}".format,
            )
        )
        self.show_status(((words.plural(len(self._records), "run"), "muted"),))
        self._draw_differences()

    def _draw_differences(self) -> None:
        if self._records:
            self.query_one(Differences).show(self._records)


class Differences(Canvas):
    """A row for every setting in which the runs differ."""

    def show(self, runs: Sequence[RunRecord]) -> None:
        width = self.content_size.width
        if not width:
            return
        found = overlay.differences(runs)
        told = words.plural(len(found), "setting") if found else "none"
        rows: list[Row] = [heading("settings that differ", ((told, "muted"),), width)]
        rows += [self._row(key, [str(value) for value in values], width) for key, values in found[:_MOST_DIFFERENCES]]
        if len(found) > _MOST_DIFFERENCES:
            rows.append(((f"… and {len(found) - _MOST_DIFFERENCES} more: gptoss compare", "muted"),))
        self.paint(rows)
        self.fit_height(len(rows))

    @staticmethod
    def _row(key: str, values: list[str], width: int) -> Row:
        room = max(4, (width - 32) // len(values) - 1)
        row: Row = ((f"{words.shorten(key, 31):<32}", "muted"),)
        for number, value in enumerate(values):
            style = LINE_STYLES[number % len(LINE_STYLES)]
            row = (*row, (f"{words.shorten(value, room):<{room}} ", style))
        return cut(row, width)
