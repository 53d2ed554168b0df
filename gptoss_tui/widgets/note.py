"""A title and a few sentences, wrapped to the width."""

from __future__ import annotations

from rich.cells import cell_len

from gptoss_tui.log_file import readable
from gptoss_tui.widgets.canvas import Canvas, Row, take


class Note(Canvas):
    """Text that explains; set with `show`."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._parts: list[tuple[str, str]] = []

    def show(self, title: str, text: str = "", *, style: str = "strong", more: str = "") -> None:
        """A title in `style`, a text below it, and a dim remark at the end."""
        self.show_parts([(title, style), (text, "text"), (more, "muted")])

    def show_parts(self, parts: list[tuple[str, str]]) -> None:
        """Paragraphs as (text, style); empty ones are left out."""
        self._parts = [(text, style) for text, style in parts if text]
        self.redraw()

    def redraw(self) -> None:
        if width := self.content_size.width:
            rows = self._wrapped(width)
            self.paint(rows)
            self.fit_height(len(rows))

    def _wrapped(self, width: int) -> list[Row]:
        rows: list[Row] = []
        for text, style in self._parts:
            for paragraph in text.split("\n"):
                rows += [((line, style),) for line in wrap(readable(paragraph.encode()), width)]
        return rows


def wrap(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` cells (2 or more), broken at spaces where there are any.

    Every line is indented as the first one is.
    """
    words = text.lstrip(" ")
    indent = " " * min(len(text) - len(words), width // 2)
    width -= len(indent)
    lines: list[str] = []
    line = ""
    for word in words.split(" "):
        candidate = f"{line} {word}" if line else word
        if cell_len(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        while cell_len(word) > width:
            part = take(word, width) or word[:1]
            lines.append(part)
            word = word[len(part) :]
        line = word
    return [indent + line for line in (*lines, line)]
