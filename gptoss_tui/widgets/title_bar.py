"""The first line of every screen: where one is, and the fact that matters most there."""

from __future__ import annotations

from gptoss_tui.widgets.canvas import Canvas, Row, cut, fill, width_of


class TitleBar(Canvas):
    """`gptoss › PLACE` at the left, a short status at the right."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place: Row = ((place, "strong"),)
        self._status: Row = ()

    def show(self, status: Row, place: str | None = None) -> None:
        """Change the status, and the place where one is given."""
        if place is not None:
            self._place = ((place, "strong"),)
        self._status = status
        self.redraw()

    def redraw(self) -> None:
        left: Row = ((" gptoss ", "accent"), ("› ", "muted"), *self._place, ("  ", ""))
        if width := self.content_size.width:
            # A long status, such as an error, must not push away where one is.
            status = cut(self._status, max(0, width - width_of(left) - 1))
            self.paint([fill(left, (*status, (" ", "")), width)])
