"""The heading of a part of a screen: its name and a line to the right edge."""

from __future__ import annotations

from gptoss_tui.widgets.canvas import Canvas, Row, heading


class Rule(Canvas):
    """A title over what follows; brightened while the part has the focus."""

    def __init__(self, title: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._heading_text = title
        self._right: Row = ()
        self._is_bright = False

    def show(self, title: str | None = None, right: Row | None = None, *, is_bright: bool | None = None) -> None:
        """Change what is given."""
        self._heading_text = self._heading_text if title is None else title
        self._right = self._right if right is None else right
        self._is_bright = self._is_bright if is_bright is None else is_bright
        self.redraw()

    def redraw(self) -> None:
        if width := self.content_size.width:
            self.paint([heading(self._heading_text, self._right, width, is_focused=self._is_bright)])
