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
        self._strips: dict[Row, Strip] = {}
        """Rows as they were rendered; one that moves, as a log's does, is rendered once."""
        self._rich_styles: dict[str, Style] = {}
        self._told_size = Size()
        self._is_bare: bool | None = None
        """True when nothing of its own is drawn round the rows or over them; None when that is to be found out."""

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
        regions = [
            Region(first, y, cells, 1)
            for y, (before, after) in enumerate(zip(old, rows, strict=True))
            if before != after
            for first, cells in [change(before, after)]
        ]
        kept = set(rows)
        self._strips = {row: strip for row, strip in self._strips.items() if row in kept}
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
        row = self._rows[y] if y < len(self._rows) else ()
        strip = self._strips.get(row)
        if strip is None or strip.cell_length != width:
            segments = [Segment(text, self._style(style)) for text, style in row if text]
            strip = Strip(segments).adjust_cell_length(width, self._style("")).simplify()
            self._strips[row] = strip
        return strip

    def render_lines(self, crop: Region) -> list[Strip]:
        # What Textual (8.2.8) does to every line for padding, borders and effects costs more than our lines do, and
        # hardly any of these widgets has them.
        if self._is_bare is None:
            styles = self.styles
            is_opaque = styles.text_opacity == self.opacity == 1.0
            self._is_bare = is_opaque and not (styles.gutter or styles.outline or styles.tint.a)
        if not self._is_bare:
            return super().render_lines(crop)
        _, background = self.background_colors
        strips = [self.render_line(y) for y in crop.line_range]
        for one in self.get_line_filters():
            strips = [strip.apply_filter(one, background) for strip in strips]
        return [strip.crop(*crop.column_span) for strip in strips]

    def notify_style_update(self) -> None:
        self._is_bare = None
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


def change(before: Row, after: Row) -> tuple[int, int]:
    """First cell and number of cells of the stretch in which two rows differ."""
    least = min(len(before), len(after))
    start = next((place for place in range(least) if before[place] != after[place]), least)
    same_behind = range(1, least - start + 1)
    behind = next((place - 1 for place in same_behind if before[-place] != after[-place]), least - start)
    old, new = before[start : len(before) - behind], after[start : len(after) - behind]
    first, width, old_width = width_of(before[:start]), width_of(new), width_of(old)
    if width != old_width:  # what is behind it has moved
        return first, max(width_of(before), width_of(after)) - first
    return first, width
