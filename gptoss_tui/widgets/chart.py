"""A live line chart on the terminal's own cells: cost flat in the length of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

from textual import events
from textual.binding import Binding
from textual.reactive import reactive

from gptoss_tui import words
from gptoss_tui.glyphs import Charset
from gptoss_tui.plot import raster
from gptoss_tui.plot.scale import Scale, grown, labels, make_scale
from gptoss_tui.plot.series import Column, Series
from gptoss_tui.widgets.canvas import Canvas, Row, Span, heading

_LABEL_CELLS = 8
_MARK = "◆"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What a chart shows."""

    title: str
    unit: str = ""
    series: Series = field(default_factory=Series)
    marks: Series | None = None
    """A second, sparse series, drawn as separate marks."""
    marks_title: str = ""
    iterations: float = float("inf")
    """Length of the run; the axis never reaches beyond it."""


class Chart(Canvas, can_focus=True):
    """Raw values as a dim band, their smoothed course as a line, the last value in the heading."""

    BINDINGS = [
        Binding("left", "move(-1)", "Cursor", show=False),
        Binding("right", "move(1)", "Cursor", show=False),
        Binding("shift+left", "move(-10)", "Cursor far", show=False),
        Binding("shift+right", "move(10)", "Cursor far", show=False),
        Binding("home", "jump(0)", "First value", show=False),
        Binding("end", "jump(1)", "Last value", show=False),
        Binding("escape", "hide_cursor", "Hide cursor", show=False),
        Binding("y", "toggle_log", "Log axis"),
    ]

    is_log: reactive[bool] = reactive(False, repaint=False)
    cursor: reactive[int | None] = reactive(None, repaint=False)
    """Cell column of the cursor inside the plot, or None when it is hidden."""

    def __init__(
        self,
        picture: Picture,
        *,
        charset: Charset = Charset.BRAILLE,
        id: str | None = None,
        classes: str | None = None,
    ) -> None:
        super().__init__(id=id, classes=classes)
        self.picture = picture
        self._dots = raster.dots_for(charset)
        self._scale: Scale | None = None
        self._columns: list[Column | None] = []

    def show(self, picture: Picture) -> None:
        """Show another picture; the same one again after its series grew."""
        if picture.series is not self.picture.series:
            self._scale = None
        self.picture = picture
        self.redraw()

    def redraw(self) -> None:
        """Draw the series as they are now."""
        width, height = self.content_size
        if width and height:
            self.paint(self._rows_for(width, height))

    def on_resize(self) -> None:
        self._scale = None
        self.redraw()

    def on_focus(self) -> None:
        self.redraw()

    def on_blur(self) -> None:
        self.redraw()

    def watch_is_log(self) -> None:
        self._scale = None
        self.redraw()

    def watch_cursor(self) -> None:
        self.redraw()

    def action_toggle_log(self) -> None:
        self.is_log = not self.is_log

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        # Escape leaves one layer at a time: the cursor first, then the screen.
        return self.cursor is not None if action == "hide_cursor" else True

    def action_hide_cursor(self) -> None:
        self.cursor = None

    def action_move(self, cells: int) -> None:
        filled = self._filled_cells()
        if not filled:
            return
        here = filled[-1] if self.cursor is None else self.cursor + cells
        self.cursor = min(filled[-1], max(filled[0], here))

    def action_jump(self, end: int) -> None:
        if filled := self._filled_cells():
            self.cursor = filled[-end]

    def on_mouse_down(self, event: events.MouseDown) -> None:
        column = event.get_content_offset_capture(self).x - _LABEL_CELLS
        if filled := self._filled_cells():
            self.cursor = min(filled[-1], max(filled[0], column))

    def _filled_cells(self) -> list[int]:
        across = self._dots.across
        return sorted({index // across for index, column in enumerate(self._columns) if column is not None})

    @property
    def _last_iteration(self) -> float:
        return grown(max(self.picture.series.last_iteration, 10), max(10, self.picture.iterations))

    def _rows_for(self, width: int, height: int) -> list[Row]:
        plot_width, plot_height = width - _LABEL_CELLS, height - 2
        if plot_width < 8 or plot_height < 2:
            return [self._heading(width)]
        last = self._last_iteration
        self._columns = self.picture.series.columns(0, last, plot_width * self._dots.across)
        shown = [column for column in self._columns if column is not None]
        if not shown:
            return [self._heading(width), *self._waiting(width, height - 1)]
        marks = self.picture.marks.columns(0, last, plot_width) if self.picture.marks else []
        everything = shown + [column for column in marks if column is not None]
        self._scale = make_scale(
            min(c.low for c in everything),
            max(c.high for c in everything),
            is_log=self.is_log,
            previous=self._scale,
        )
        body = self._body(self._scale, marks, plot_width, plot_height)
        return [self._heading(width), *body, self._axis(last, plot_width)]

    def _body(self, scale: Scale, marks: list[Column | None], width: int, height: int) -> list[Row]:
        radius = max(1, sum(1 for column in self._columns if column is not None) // 40)
        line = raster.smoothed(self._columns, radius)
        lines, bands = raster.draw(self._columns, line, scale, (width, height), self._dots)
        placed = self._place_marks(marks, scale, height)
        names = self._tick_rows(scale, height)
        rows: list[Row] = []
        for y in range(height):
            label = names.get(y, "")
            left: Row = ((f"{label:>{_LABEL_CELLS - 2}} ", "muted"), ("┤" if label else "│", "rule"))
            rows.append((*left, *self._cells(lines[y], bands[y], placed.get(y, set()))))
        return rows

    def _tick_rows(self, scale: Scale, height: int) -> dict[int, str]:
        ticks = scale.ticks(max(3, height // 3))
        rows = [height - 1 - round(scale.position(tick) * (height - 1)) for tick in ticks]
        return dict(zip(rows, labels(ticks), strict=True))

    @staticmethod
    def _place_marks(marks: list[Column | None], scale: Scale, height: int) -> dict[int, set[int]]:
        placed: dict[int, set[int]] = {}
        for x, column in enumerate(marks):
            if column is not None:
                placed.setdefault(height - 1 - round(scale.position(column.mean) * (height - 1)), set()).add(x)
        return placed

    def _cells(self, line: bytearray, band: bytearray, marks: set[int]) -> list[Span]:
        spans: list[Span] = []
        characters = self._dots.characters
        for x, (bright, dim) in enumerate(zip(line, band, strict=True)):
            if x in marks:
                cell, style = _MARK, "mark"
            elif bright:
                cell, style = characters[bright], "line"
            elif x == self.cursor:
                cell, style = "│", "mark"
            elif dim:
                cell, style = characters[dim], "band"
            else:
                cell, style = " ", ""
            if spans and spans[-1][1] == style:
                spans[-1] = (spans[-1][0] + cell, style)
            else:
                spans.append((cell, style))
        return spans

    def _axis(self, last: float, width: int) -> Row:
        scale = Scale(0, last)
        cells = [" "] * width
        free_from = 0
        for tick in scale.ticks(max(2, width // 14)):
            name = words.count(tick)
            start = min(width - len(name), max(0, round(scale.position(tick) * (width - 1)) - len(name) // 2))
            if start >= free_from:
                cells[start : start + len(name)] = name
                free_from = start + len(name) + 2
        return ((" " * (_LABEL_CELLS - 1), ""), ("└", "rule"), ("".join(cells), "muted"))

    def _heading(self, width: int) -> Row:
        picture = self.picture
        at_cursor = self._cursor_spans()
        right: list[Span] = []
        if self.is_log:
            right.append(("log  ", "muted"))
        if picture.series.rejected:
            right.append((f"{picture.series.rejected} not finite  ", "bad"))
        if picture.marks is not None and picture.marks.last is not None and not at_cursor:
            right += [
                (f"{_MARK} ", "mark"),
                (f"{picture.marks_title} ", "muted"),
                (f"{words.number(picture.marks.last)}  ", "text"),
            ]
        if at_cursor:
            right += at_cursor
        elif picture.series.last is not None:
            right.append((words.number(picture.series.last), "strong"))
        if picture.unit:
            right.append((f" {picture.unit}", "muted"))
        return heading(picture.title, tuple(right), width, is_focused=self.has_focus)

    def _cursor_spans(self) -> list[Span]:
        column = self._column_at_cursor()
        if column is None or self.cursor is None:
            return []
        dots = range(self.cursor * self._dots.across, len(self._columns))
        first = next(dot for dot in dots if self._columns[dot] is not None)
        share = first / max(1, len(self._columns) - 1)
        spans: list[Span] = [
            (f"{round(share * self._last_iteration):,}: ", "mark"),
            (words.number(column.mean), "strong"),
        ]
        if column.high > column.low:
            spans.append((f" ({words.number(column.low)} to {words.number(column.high)})", "muted"))
        return spans

    def _column_at_cursor(self) -> Column | None:
        if self.cursor is None:
            return None
        across = self._dots.across
        inside = [c for c in self._columns[self.cursor * across : (self.cursor + 1) * across] if c is not None]
        if not inside:
            return None
        return Column(
            low=min(c.low for c in inside),
            high=max(c.high for c in inside),
            mean=sum(c.mean for c in inside) / len(inside),
        )

    @staticmethod
    def _waiting(width: int, height: int) -> list[Row]:
        blank: list[Row] = [()] * height
        blank[height // 2] = (("no values yet".center(width), "muted"),)
        return blank
