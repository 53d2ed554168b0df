"""Facts as `name  sentence`, wrapped, with a mark for what is well and what is not."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss_tui.widgets.canvas import Row, Span
from gptoss_tui.widgets.note import wrap

type Told = tuple[str, str, str]
"""Name, verdict and sentence; the verdict is `good`, `bad`, `warning` or empty."""

_MARKS: dict[str, Span] = {"good": ("✓ ", "good"), "bad": ("✗ ", "bad"), "warning": ("! ", "warning")}
_NAME_CELLS = 10


def told_rows(told: Sequence[Told], width: int) -> list[Row]:
    """The facts in rows of at most `width` cells."""
    rows: list[Row] = []
    for name, verdict, sentence in told:
        mark = _MARKS.get(verdict, ("  ", ""))
        style = "bad" if verdict == "bad" else "text"
        lines = wrap(sentence, max(10, width - _NAME_CELLS - 2))
        for place, line in enumerate(lines):
            first: Row = ((f"{name:<{_NAME_CELLS}}", "muted"), mark) if place == 0 else ((" " * (_NAME_CELLS + 2), ""),)
            rows.append((*first, (line, style)))
    return rows
