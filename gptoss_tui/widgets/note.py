"""A title and a few sentences, wrapped to the width."""

from __future__ import annotations

import re

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
            rows = [row for text, style in self._parts for row in rows_of(text, style, width)]
            self.paint(rows)
            self.fit_height(len(rows))


def rows_of(text: str, style: str, width: int) -> list[Row]:
    """The paragraphs of a text that may come from anywhere, wrapped."""
    return [((line, style),) for paragraph in text.split("\n") for line in wrap(readable(paragraph), width)]


_HEAD = re.compile(r" *(?:\d+\. \S+ +|[✗!·→] +)?")
"""What a line begins with that the lines below it are indented by: spaces, a number with a name, a mark."""


def wrap(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` cells (2 or more), broken at spaces where there are any.

    Every line begins below the text of the first one, behind its indentation and its number or mark.
    """
    head = _HEAD.match(text)
    start = head[0] if head is not None else ""
    if cell_len(start) > width // 2:
        start = start[: width // 2]
    width -= cell_len(start)
    lines: list[str] = []
    line = ""
    for word in text[len(start) :].lstrip(" ").split(" "):
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
    first, *others = (*lines, line)
    return [start + first, *(" " * cell_len(start) + one for one in others)]
