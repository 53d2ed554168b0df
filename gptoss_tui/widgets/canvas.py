"""Rows of styled text; only the cells that changed are painted again.

Everything on the screen that moves stands on this: over a slow line the bytes are what costs,
and Textual repaints a whole widget when its content is replaced.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Region, Size
from textual.reactive import Reactive
from textual.strip import Strip
from textual.widget import Widget

type Span = tuple[str, str]
"""A text and the name of its style in the palette of theme.py, several joined by `+`, or an empty string."""
type Row = tuple[Span, ...]

_JOIN_CELLS = 14
"""Two changes on a row this near are painted as one: moving the cursor and naming the colours
again costs about as many bytes as these cells."""


def width_of(row: Row) -> int:
    return sum(cell_len(text) for text, _ in row)


def fill(left: Row, right: Row, width: int, style: str = "", filler: str = " ") -> Row:
    """`left` and `right` at the two ends of `width` cells; what does not fit of `left` is cut."""
    space = width - width_of(left) - width_of(right)
    if space >= 0:
        return (*left, (filler * space, style), *right)
    return (*cut(left, max(0, width - width_of(right))), *cut(right, width))


def cut(row: Row, width: int) -> Row:
    """The first `width` cells of `row`, its last one an ellipsis when something is left out."""
    if width_of(row) <= width:
        return row
    kept: list[Span] = []
    room = width
    for text, style in row:
        if cell_len(text) > room:
            kept.append((take(text, room - 1) + "…" if room > 0 else "", style))
            break
        kept.append((text, style))
        room -= cell_len(text)
    return tuple(kept)


def take(text: str, cells: int) -> str:
    """As much of the beginning of `text` as fits into `cells`; letters may be two cells wide."""
    if text.isascii():
        return text[: max(0, cells)]
    used = 0
    for place, letter in enumerate(text):
        used += cell_len(letter)
        if used > cells:
            return text[:place]
    return text


def heading(title: str, right: Row, width: int, *, is_focused: bool = False) -> Row:
    """The first row of every panel: its name, a rule, and what matters most at the right."""
    left: Row = ((f"{title} ", "accent" if is_focused else "title"),)
    tail: Row = ((" ", ""), *right) if right else ()
    return fill(left, tail, width, "accent" if is_focused else "rule", "━" if is_focused else "─")


def selected(row: Row) -> Row:
    """`row` as the chosen one of a list."""
    return tuple((text, f"{style}+selected" if style else "selected") for text, style in row)


class Canvas(Widget):
    """A widget of rows. `paint` gives it new ones."""

    # No component classes: Textual makes a node of the DOM for each of them in every widget,
    # and a form of twenty fields would need a second to open.
    ALLOW_SELECT = False

    # A canvas of another size asks for no second layout, as Textual's widgets do.
    virtual_size: Reactive[Size] = Reactive(Size(0, 0), repaint=False)

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._rows: list[Row] = []
        self._strips: dict[int, Strip] = {}
        self._rich_styles: dict[str, Style] = {}
        self._told_size = Size()

    @property
    def rows(self) -> list[Row]:
        """What was painted last."""
        return self._rows

    @property
    def text(self) -> str:
        """What was painted last, without its styles."""
        return "\n".join("".join(text for text, _ in row).rstrip() for row in self._rows)

    def paint(self, rows: list[Row]) -> None:
        """Show `rows`, and send the terminal what differs from the last ones."""
        old, self._rows = self._rows, rows
        if len(old) != len(rows):
            self._strips.clear()
            self.refresh()
            return
        regions: list[Region] = []
        for y, (before, after) in enumerate(zip(old, rows, strict=True)):
            if before != after:
                self._strips.pop(y, None)
                regions += [Region(x, y, width, 1) for x, width in changes(before, after)]
        if regions:
            self.refresh(*regions)

    def fit_height(self, rows: int) -> None:
        """Take up `rows` rows, where the stylesheet says `height: auto`.

        A number rather than a request for a new layout: Textual drops one that comes while
        another is pending (widget.py:4354, 8.2.8), and the widget keeps its old height.
        """
        if self.styles.base.is_auto_height:
            self.styles.height = max(1, rows)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(1, len(self._rows))

    def redraw(self) -> None:
        """Paint what is known for the present size and focus; a widget with nothing to keep leaves it out."""

    def on_resize(self) -> None:
        self._told_size = self.size
        self.redraw()

    def watch_has_focus(self, has_focus: bool) -> None:
        # Not on_focus: it is called before Textual's own handler, which sets `has_focus`.
        super().watch_has_focus(has_focus)
        self.redraw()

    def render_line(self, y: int) -> Strip:
        if self._told_size != self.size:
            # Textual (8.2.8) tells no new widget its size when a region was asked for between the change of
            # the layout and its reflow (`Compositor.full_map`); such a widget would stay empty for good.
            self._told_size = self.size
            self.post_message(events.Resize(self.size, self.virtual_size, self.container_size))
        width = self.content_size.width
        strip = self._strips.get(y)
        if strip is None or strip.cell_length != width:
            row = self._rows[y] if y < len(self._rows) else ()
            segments = [Segment(text, self._style(style)) for text, style in row if text]
            strip = Strip(segments).adjust_cell_length(width, self._style("")).simplify()
            self._strips[y] = strip
        return strip

    def notify_style_update(self) -> None:
        self._rich_styles.clear()
        self._strips.clear()
        super().notify_style_update()

    def _style(self, name: str) -> Style:
        style = self._rich_styles.get(name)
        if style is None:
            style = self.rich_style
            palette: dict[str, Style] = getattr(self.app, "palette", {})
            for part in name.split("+") if name else ():
                style += palette.get(part, Style.null())
            self._rich_styles[name] = style
        return style


def changes(before: Row, after: Row) -> list[tuple[int, int]]:
    """Where two rows differ, as (first cell, number of cells)."""
    old, new = _cells(before), _cells(after)
    if old is None or new is None:
        return [(0, max(width_of(before), width_of(after)))]
    length = max(len(old), len(new))
    old += [(" ", "")] * (length - len(old))
    new += [(" ", "")] * (length - len(new))
    found: list[tuple[int, int]] = []
    for x, (a, b) in enumerate(zip(old, new, strict=True)):
        if a == b:
            continue
        if found and x - sum(found[-1]) < _JOIN_CELLS:
            found[-1] = (found[-1][0], x + 1 - found[-1][0])
        else:
            found.append((x, 1))
    return found


def _cells(row: Row) -> list[Span] | None:
    # Letters two cells wide would shift everything behind them; such a row is painted whole.
    if any(not text.isascii() and cell_len(text) != len(text) for text, _ in row):
        return None
    # The colour of a space does not show, so it is not compared.
    return [
        (letter, style if letter != " " or style.endswith(_BACKGROUNDS) else "")
        for text, style in row
        for letter in text
    ]


_BACKGROUNDS = ("cursor", "selected")
"""Styles that show on a space; they come last where several are joined."""
