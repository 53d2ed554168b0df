"""The same picture for less work: nothing is rendered that does not show.

Textual 8.2 renders every widget in the rectangle round all changes, also where nothing changed or others lie in
front of it (`render_partial_update` and `_render_chops` in _compositor.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import cast

from textual._compositor import ChopsUpdate, Compositor
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget


class FrugalCompositor(Compositor):
    """Textual's compositor, which renders of each widget the rows that show where something changed."""

    def render_partial_update(self) -> ChopsUpdate | None:
        # Textual renders the whole rectangle round all changes: a rail at the left and a figure at the right are
        # that of nearly every widget.
        regions = self._dirty_regions.copy()
        self._dirty_regions.clear()
        if not regions:
            return None
        height = self.size.height
        spans = [span for span in self._regions_to_spans(regions) if 0 <= span[0] < height]
        bare: dict[int, set[int]] = {}
        for y, left, right in spans:
            bare.setdefault(y, set()).update(self._pieces(y, left, right))
        return ChopsUpdate(self._chops(bare), spans, [cuts[1:] for cuts in self.cuts])

    def _render_chops(self, crop: Region, is_rendered_line: Callable[[int], bool]) -> Sequence[Mapping[int, Strip]]:
        return self._chops({y: set(self._pieces(y, *crop.column_span)) for y in crop.line_range if is_rendered_line(y)})

    def _pieces(self, y: int, left: int, right: int) -> Iterator[int]:
        """The pieces of a row that lie between two columns, by their left ends."""
        return (x for x, end in pairwise(self.cuts[y]) if x < right and end > left)

    def _chops(self, bare: dict[int, set[int]]) -> Sequence[Mapping[int, Strip]]:
        """Pieces of each row by their left ends; `bare` are those that are wanted, and empty afterwards."""
        chops: list[dict[int, Strip | None]] = [dict.fromkeys(cuts[:-1]) for cuts in self.cuts]
        for widget, (region, clip) in self.visible_widgets.items():  # front to back
            if not bare:
                break
            seen = region.intersection(clip)
            rows = [y for y in seen.line_range if y in bare and any(seen.x <= x < seen.right for x in bare[y])]
            for y, strip in zip(rows, _rendered(widget, region, seen, rows), strict=True):
                cuts = [cut for cut in self.cuts[y] if seen.x <= cut <= seen.right]
                for x, piece in zip(cuts, strip.divide([cut - seen.x for cut in cuts[1:]]), strict=False):
                    if x in bare[y]:
                        chops[y][x] = piece
                        bare[y].remove(x)
                if not bare[y]:
                    del bare[y]
        return cast("Sequence[Mapping[int, Strip]]", chops)


def _rendered(widget: Widget, region: Region, seen: Region, rows: list[int]) -> Iterator[Strip]:
    """The given rows of the screen from a widget at `region` of which `seen` may show."""
    for _, run in groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):  # rows that follow one another
        together = [y for _, y in run]
        yield from widget.render_lines(Region(seen.x - region.x, together[0] - region.y, seen.width, len(together)))
