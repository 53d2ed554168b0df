"""The same picture for less: fewer cells computed, and fewer bytes sent, which over a slow line are what is felt.

Textual 8.2 renders every widget in the rectangle round all changes, also where others lie in front of it; sends a
changed span from the left edge of its widget on (`ChopsUpdate` in _compositor.py crops it only at the right); and
names both colours anew for every run of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import cast

from rich.console import Console
from rich.control import Control
from rich.style import Style
from textual._compositor import ChopsUpdate, Compositor
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget


class FrugalCompositor(Compositor):
    """Textual's compositor, which renders of each widget the rows that show, and sends the cells that changed."""

    def _render_chops(self, crop: Region, is_rendered_line: Callable[[int], bool]) -> Sequence[Mapping[int, Strip]]:
        left, right = crop.column_span
        chops: list[dict[int, Strip | None]] = [dict.fromkeys(cuts[:-1]) for cuts in self.cuts]
        # The pieces of each wanted row, by their left ends, that no widget has filled yet.
        bare = {
            y: {x for x, end in pairwise(self.cuts[y]) if x < right and end > left}
            for y in crop.line_range
            if is_rendered_line(y)
        }
        for widget, (region, clip) in self.visible_widgets.items():  # front to back
            seen = region.intersection(clip)
            rows = [y for y in seen.line_range if y in bare and any(seen.x <= x < seen.right for x in bare[y])]
            for y, strip in zip(rows, _rendered(widget, region, seen, rows), strict=True):
                cuts = [cut for cut in self.cuts[y] if seen.x <= cut <= seen.right]
                for x, piece in zip(cuts, strip.divide([cut - seen.x for cut in cuts[1:]]), strict=False):
                    if x in bare[y]:
                        chops[y][x] = piece
                        bare[y].remove(x)
        return cast("Sequence[Mapping[int, Strip]]", chops)

    def render_partial_update(self) -> ChopsUpdate | None:
        update = super().render_partial_update()
        return None if update is None else FrugalUpdate(update.chops, update.spans, update.chop_ends)


def _rendered(widget: Widget, region: Region, seen: Region, rows: list[int]) -> Iterator[Strip]:
    """The given rows of the screen from a widget at `region` of which `seen` may show."""
    for _, run in groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):  # rows that follow one another
        together = [y for _, y in run]
        yield from widget.render_lines(Region(seen.x - region.x, together[0] - region.y, seen.width, len(together)))


class FrugalUpdate(ChopsUpdate):
    """Sends the changed cells and nothing else."""

    def render_segments(self, console: Console) -> str:
        parts: list[str] = []
        pen = Pen(console)
        for y, first, last in self.spans:
            for end, (x, strip) in zip(self.chop_ends[y], self.chops[y].items(), strict=False):
                if strip is None or x >= last or end <= first:
                    continue
                start, stop = max(x, first), min(end, last)
                parts.append(Control.move_to(start, y).segment.text)
                parts.append(pen.draw(strip.crop(start - x, stop - x)))
        parts.append(pen.lift())
        return "".join(parts)


class Pen:
    """Writes runs of text, naming only what differs from the style before."""

    def __init__(self, console: Console) -> None:
        self._colours = console._color_system
        self._style: Style | None = None

    def draw(self, strip: Strip) -> str:
        """The text of `strip`, from the style of what was drawn last."""
        parts: list[str] = []
        for text, style, control in strip:
            if control is None:
                is_blank = not text.strip(" ")
                parts.append(self._switch(style or Style.null(), is_blank=is_blank) + text)
        return "".join(parts)

    def lift(self) -> str:
        """Back to the terminal's own style."""
        is_plain = self._style is None or not self._style
        self._style = None
        return "" if is_plain else "\x1b[0m"

    def _switch(self, style: Style, *, is_blank: bool) -> str:
        before = self._style
        if before is not None and _differ_in_foreground_only(before, style):
            # The colour of a space does not show.
            if is_blank or before.color == style.color:
                return ""
            if style.color is not None and self._colours is not None:
                self._style = style
                return f"\x1b[{';'.join(style.color.downgrade(self._colours).get_ansi_codes())}m"
        self._style = style
        codes = style._make_ansi_codes(self._colours) if self._colours is not None else ""
        return f"\x1b[0;{codes}m" if codes else "\x1b[0m" if before else ""


def _differ_in_foreground_only(before: Style, after: Style) -> bool:
    attributes = before._attributes & before._set_attributes
    return before.bgcolor == after.bgcolor and attributes == after._attributes & after._set_attributes
