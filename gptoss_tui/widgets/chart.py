"""A live line chart on the terminal's own cells: cost flat in the length of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

from textual import events
from textual.binding import Binding
from textual.reactive import reactive

from engine.monitor.scale import Scale, grown, labels, make_scale
from engine.monitor.series import Column, Series
from gptoss_tui import words
from gptoss_tui.glyphs import Charset
from gptoss_tui.plot import raster
from gptoss_tui.plot.view import View
from gptoss_tui.widgets.canvas import Canvas, Row, Span, heading

_LABEL_CELLS = 8
_MARK = "◆"
_LEVEL = "╌"
_FAR = 4.0
"""A level that lies further than this factor from every value is named, not drawn: it would flatten the curve."""
LINE_STYLES = ("line", "mark", "good", "bad", "text", "muted")
"""The styles of the first line and of those over it."""

type _Plot = tuple[tuple[bytes, ...], bytes, tuple[int, ...], str, int | None]
"""What a row of the plot shows: dots of the lines and of the band, places of marks, a level, the cursor."""


@dataclass(frozen=True, slots=True)
class Level:
    """A value to compare with: what was planned, what was published."""

    title: str
    value: float


@dataclass(frozen=True, slots=True)
class Line:
    """A further series over the first one."""

    title: str
    series: Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What a chart shows."""

    title: str
    unit: str = ""
    series: Series = field(default_factory=Series)
    marks: Series | None = None
    """A second, sparse series, drawn as separate marks."""
    marks_title: str = ""
    lines: tuple[Line, ...] = ()
    """Other runs' series; the first series is then named by `line_title`."""
    line_title: str = ""
    levels: tuple[Level, ...] = ()
    iterations: float = float("inf")
    """Length of the run; the axis never reaches beyond it."""
    axis: str = "iteration"
    """What the places count."""
    place: Callable[[float], str] = words.count
    """A place on the axis in words."""
    exact_place: Callable[[float], str] = "{:,.0f}".format
    """The same for the cursor."""


class Chart(Canvas, can_focus=True):
    """Raw values as a dim band, their smoothed course as a line, the last value in the heading."""

    BINDINGS = [
        Binding("left", "move(-1)", "Cursor", show=False, id="chart.left"),
        Binding("right", "move(1)", "Cursor", show=False, id="chart.right"),
        Binding("shift+left", "move(-10)", "Cursor far", show=False, id="chart.far-left"),
        Binding("shift+right", "move(10)", "Cursor far", show=False, id="chart.far-right"),
        Binding("home", "jump(0)", "First value", show=False, id="chart.first"),
        Binding("end", "jump(1)", "Last value", show=False, id="chart.last"),
        Binding("escape", "hide_cursor", "Hide cursor", show=False, id="chart.hide-cursor"),
        Binding("plus,equals_sign,up", "zoom(0.5)", "Zoom", key_display="+", id="chart.zoom-in"),
        Binding("minus,down", "zoom(2)", "Zoom out", show=False, id="chart.zoom-out"),
        Binding("0", "whole", "Whole run", show=False, id="chart.whole"),
        Binding("y", "toggle_log", "Log axis", id="chart.log-axis"),
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
        self._view = View()
        self._shown = (0.0, 1.0)
        """First and last place of the axis as it was drawn."""
        self._plots: dict[_Plot, list[Span]] = {}
        """The rows of the plot as they were drawn, by what they show."""

    def show(self, picture: Picture) -> None:
        """Show another picture; the same one again after its series grew."""
        if picture.series is not self.picture.series:
            self._scale = None
            if picture.axis != self.picture.axis:
                self._view, self.cursor = View(), None  # their places mean nothing on another axis
        self.picture = picture
        self.redraw()

    def redraw(self) -> None:
        """Draw the series as they are now."""
        width, height = self.content_size
        if width and height:
            self.paint(self._rows_for(width, height))

    def on_resize(self) -> None:
        # Runs before the handler of Canvas, which draws.
        self._scale = None

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
        edge = min(filled[-1], max(filled[0], here))
        if here != edge and self._view.is_zoomed:
            self._see(self._view.moved(0.25 if here > edge else -0.25, self._end))
            filled = self._filled_cells() or [edge]
            edge = min(filled[-1], max(filled[0], edge))
        self.cursor = edge

    def action_jump(self, end: int) -> None:
        if self._view.is_zoomed:
            self._see(self._view.moved(float("inf") if end else float("-inf"), self._end))
        if filled := self._filled_cells():
            self.cursor = filled[-end]

    def action_zoom(self, factor: float) -> None:
        """Half of what is shown, or twice as much: around the cursor, else up to the newest value."""
        around = None if self.cursor is None else self._place_of(self.cursor)
        self._see(self._view.zoomed(factor, self._end, around))
        if around is not None:
            first, last = self._shown
            cells = max(1, len(self._columns) // self._dots.across - 1)
            self.cursor = min(cells, max(0, round((around - first) / (last - first) * cells)))

    def action_whole(self) -> None:
        self._see(View())

    def _see(self, view: View) -> None:
        if view != self._view:
            self._view, self._scale = view, None
            self.redraw()

    def on_mouse_down(self, event: events.MouseDown) -> None:
        column = event.get_content_offset_capture(self).x - _LABEL_CELLS
        if filled := self._filled_cells():
            self.cursor = min(filled[-1], max(filled[0], column))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_zoom(0.5)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_zoom(2)

    def _filled_cells(self) -> list[int]:
        across = self._dots.across
        return sorted({index // across for index, column in enumerate(self._columns) if column is not None})

    def _place_of(self, cell: int) -> float:
        """The place on the axis under the middle of a cell."""
        first, last = self._shown
        return first + (last - first) * cell / max(1, len(self._columns) // self._dots.across - 1)

    @property
    def _end(self) -> float:
        """The newest place of any series."""
        newest = max(series.last_iteration for series in self._all_series())
        return float(max(newest, 10))

    def _all_series(self) -> list[Series]:
        return [self.picture.series, *(line.series for line in self.picture.lines)]

    def _axis_range(self) -> tuple[float, float]:
        if self._view.is_zoomed:
            return self._view.range(self._end)
        return 0.0, grown(self._end, max(10, self.picture.iterations))

    def _rows_for(self, width: int, height: int) -> list[Row]:
        plot_width, plot_height = width - _LABEL_CELLS, height - 2
        if plot_width < 8 or plot_height < 2:
            return [self._heading(width)]
        first, last = self._shown = self._axis_range()
        dots = plot_width * self._dots.across
        layers = [series.columns(first, last, dots) for series in self._all_series()]
        self._columns = layers[0] if len(layers) == 1 else _merged(layers)
        shown = [column for column in self._columns if column is not None]
        if not shown:
            return [self._heading(width), *self._waiting(width, height - 1)]
        marks = self.picture.marks.columns(first, last, plot_width) if self.picture.marks else []
        everything = shown + [column for column in marks if column is not None]
        low, high = min(c.low for c in everything), max(c.high for c in everything)
        near = [level.value for level in self._near_levels(low, high)]
        self._scale = make_scale(min([low, *near]), max([high, *near]), is_log=self.is_log, previous=self._scale)
        body = self._body(layers, marks, plot_width, plot_height)
        return [self._heading(width), *body, self._axis(first, last, plot_width)]

    def _near_levels(self, low: float, high: float) -> list[Level]:
        """Those that can be drawn beside the values."""
        return [one for one in self.picture.levels if low / _FAR <= one.value <= high * _FAR]

    def _body(
        self, layers: list[list[Column | None]], marks: list[Column | None], width: int, height: int
    ) -> list[Row]:
        assert self._scale is not None
        scale, size = self._scale, (width, height)
        drawn = [self._draw(columns, scale, size) for columns in layers]
        # Two bands over one another tell nothing: only a lone series has one.
        bands = drawn[0][1] if len(drawn) == 1 else [bytearray(width) for _ in range(height)]
        placed = self._place_marks(marks, scale, height)
        names = self._tick_rows(scale, height)
        levels = self._level_rows(scale, width, height)
        plots: dict[_Plot, list[Span]] = {}
        rows: list[Row] = []
        for y in range(height):
            label = names.get(y, "")
            left: Row = ((f"{label:>{_LABEL_CELLS - 2}} ", "muted"), ("┤" if label else "│", "rule"))
            lines = tuple(bytes(line[y]) for line, _ in drawn)
            plot = lines, bytes(bands[y]), tuple(placed.get(y, ())), levels.get(y, ""), self.cursor
            # One value more changes few rows.
            plots[plot] = spans = self._plots.get(plot) or self._cells(*plot)
            rows.append((*left, *spans))
        self._plots = plots
        return rows

    def _draw(
        self, columns: list[Column | None], scale: Scale, size: tuple[int, int]
    ) -> tuple[list[bytearray], list[bytearray]]:
        filled = sum(1 for column in columns if column is not None)
        # In steps, as another radius moves the whole line.
        radius = max(1, 2 ** filled.bit_length() // 64)
        return raster.draw(columns, raster.smoothed(columns, radius), scale, size, self._dots)

    def _tick_rows(self, scale: Scale, height: int) -> dict[int, str]:
        ticks = scale.ticks(max(3, height // 3))
        rows = [height - 1 - round(scale.position(tick) * (height - 1)) for tick in ticks]
        return dict(zip(rows, labels(ticks), strict=True))

    def _level_rows(self, scale: Scale, width: int, height: int) -> dict[int, str]:
        """Dashes with the level's name at their right end, by row."""
        rows: dict[int, str] = {}
        for level in self.picture.levels:
            if scale.low <= level.value <= scale.high:
                y = height - 1 - round(scale.position(level.value) * (height - 1))
                rows[y] = f" {level.title} {_LEVEL}".rjust(width, _LEVEL)[-width:]
        return rows

    @staticmethod
    def _place_marks(marks: list[Column | None], scale: Scale, height: int) -> dict[int, list[int]]:
        placed: dict[int, list[int]] = {}
        for x, column in enumerate(marks):
            if column is not None:
                placed.setdefault(height - 1 - round(scale.position(column.mean) * (height - 1)), []).append(x)
        return placed

    def _cells(
        self, lines: tuple[bytes, ...], band: bytes, marks: tuple[int, ...], level: str, cursor: int | None
    ) -> list[Span]:
        """One row of the plot; each layer is painted over those before it."""
        characters = self._dots.characters
        cells: list[Span] = [(cell, "rule" if cell == _LEVEL else "muted") for cell in level]
        cells = cells or [(" ", "")] * len(band)
        for x in _filled(band):
            cells[x] = characters[band[x]], "band"
        if cursor is not None and cursor < len(cells):
            cells[cursor] = "│", "mark"
        for number, line in reversed(list(enumerate(lines))):
            style = LINE_STYLES[number % len(LINE_STYLES)]
            for x in _filled(line):
                cells[x] = characters[line[x]], style
        for x in marks:
            cells[x] = _MARK, "mark"
        runs = groupby(cells, key=itemgetter(1))
        return [("".join(letter for letter, _ in run), style) for style, run in runs]

    def _axis(self, first: float, last: float, width: int) -> Row:
        scale = Scale(first, last)
        cells = [" "] * width
        free_from = 0
        ticks = scale.ticks(max(3, width // 14))
        # Zoomed far in, short names of neighbours would be the same.
        names = list(map(self.picture.place, ticks))
        if len(set(names)) < len(names):
            names = list(map(self.picture.exact_place, ticks))
        for tick, name in zip(ticks, names, strict=True):
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
        if self._view.is_zoomed:
            right.append((f"zoom {self._view.factor(self._end):,.3g}x  ", "mark"))
        if picture.series.rejected:
            right.append((f"{picture.series.rejected} not finite  ", "bad"))
        if picture.lines:
            right += at_cursor[:1] + self._legend()
        elif at_cursor:
            right += at_cursor
        else:
            right += self._last_values()
        if picture.unit:
            right.append((f" {picture.unit}", "muted"))
        return heading(picture.title, tuple(right), width, is_focused=self.has_focus)

    def _last_values(self) -> list[Span]:
        picture = self.picture
        spans: list[Span] = []
        for level in picture.levels:
            spans += [(f"{level.title} ", "muted"), (f"{words.count(level.value)}  ", "text")]
        if picture.marks is not None and picture.marks.last is not None:
            spans += [
                (f"{_MARK} ", "mark"),
                (f"{picture.marks_title} ", "muted"),
                (f"{words.number(picture.marks.last)}  ", "text"),
            ]
        if picture.series.last is not None:
            spans.append((words.number(picture.series.last), "strong"))
        return spans

    def _legend(self) -> list[Span]:
        """Each line's name, with its value under the cursor, else its last one."""
        named = [(self.picture.line_title, self.picture.series)]
        named += [(line.title, line.series) for line in self.picture.lines]
        spans: list[Span] = []
        for number, (title, series) in enumerate(named):
            style = LINE_STYLES[number % len(LINE_STYLES)]
            column = self._column_at_cursor(series)
            value = column.mean if column is not None else None if self.cursor is not None else series.last
            told = "–" if value is None else words.number(value)
            spans += [("● ", style), (f"{words.shorten(title, 24)} ", "muted"), (f"{told}  ", "strong")]
        return spans

    def _cursor_spans(self) -> list[Span]:
        column = self._column_at_cursor(self.picture.series)
        if self.cursor is None or (column is None and not self.picture.lines):
            return []
        spans: list[Span] = [(f"{self.picture.exact_place(self._filled_place())}: ", "mark")]
        if column is None:
            return spans
        spans.append((words.number(column.mean), "strong"))
        if column.high > column.low:
            spans.append((f" ({words.number(column.low)} to {words.number(column.high)})", "muted"))
        return spans

    def _filled_place(self) -> float:
        """The place of the first value under the cursor."""
        assert self.cursor is not None
        dots = range(self.cursor * self._dots.across, len(self._columns))
        dot = next((dot for dot in dots if self._columns[dot] is not None), self.cursor * self._dots.across)
        first, last = self._shown
        place = first + (last - first) * dot / max(1, len(self._columns) - 1)
        # A dot holds many iterations; there may be none before its middle, as before the first of a run.
        return max(place, min((one.first_iteration for one in self._all_series() if one.points), default=place))

    def _column_at_cursor(self, series: Series) -> Column | None:
        if self.cursor is None or not self._columns:
            return None
        across = self._dots.across
        columns = self._columns if not self.picture.lines else series.columns(*self._shown, len(self._columns))
        return _joined([c for c in columns[self.cursor * across : (self.cursor + 1) * across] if c is not None])

    @staticmethod
    def _waiting(width: int, height: int) -> list[Row]:
        blank: list[Row] = [()] * height
        blank[height // 2] = (("no values yet".center(width), "muted"),)
        return blank


def _filled(bits: bytes) -> list[int]:
    return [x for x, bit in enumerate(bits) if bit]


def _joined(columns: list[Column]) -> Column | None:
    if not columns:
        return None
    return Column(
        low=min(c.low for c in columns),
        high=max(c.high for c in columns),
        mean=sum(c.mean for c in columns) / len(columns),
    )


def _merged(layers: list[list[Column | None]]) -> list[Column | None]:
    """What any of the layers holds, for the range of the axis and the steps of the cursor."""
    return [_joined([c for c in columns if c is not None]) for columns in zip(*layers, strict=True)]
