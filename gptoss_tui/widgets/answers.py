"""What two models answer to the same questions, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.cells import cell_len

from engine.run.asking import MODELS, Asked
from gptoss_tui.log_file import readable
from gptoss_tui.widgets.canvas import Canvas, Row
from gptoss_tui.widgets.note import wrap

_GAP = "   "


class Answers(Canvas):
    """Questions with their answers; grows as the answers do."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._asked: Sequence[Asked] = ()

    def show(self, asked: Sequence[Asked]) -> None:
        """Show these in place of what was there."""
        self._asked = asked
        self.redraw()

    def redraw(self) -> None:
        if width := self.content_size.width:
            rows = [row for one in self._asked for row in _question(one, width)]
            self.paint(rows)
            self.fit_height(len(rows))


def _question(asked: Asked, width: int) -> list[Row]:
    room = max(2, (width - len(_GAP)) // 2)
    rows: list[Row] = [((line, "strong"),) for line in _lines(f"> {asked.text}", width)]
    rows.append(_beside("base model", "tuned model", room, "title"))
    base, tuned = (_lines(asked.answers.get(name, "…"), room) for name in MODELS)
    rows += [_beside(left, right, room, "text") for left, right in zip_longest(base, tuned, fillvalue="")]
    if asked.expected and asked.answers.get("tuned") == asked.expected:
        rows.append((("✓ ", "good"), ("the tuned model answers as the held-out chat does", "muted")))
    elif asked.expected:
        rows += [((line, "muted"),) for line in _lines(f"in the held-out chat: {asked.expected}", width)]
    return [*rows, ()]


def _beside(left: str, right: str, room: int, style: str) -> Row:
    return ((left + " " * (room - cell_len(left)) + _GAP, style), (right, style))


def _lines(text: str, width: int) -> list[str]:
    return [line for paragraph in text.split("\n") for line in wrap(readable(paragraph), width)]
