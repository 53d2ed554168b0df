"""A panel of names and values, the values aligned at the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gptoss_tui.widgets.canvas import Canvas, Row, fill, heading


@dataclass(frozen=True, slots=True)
class Fact:
    """One row; an empty name makes a blank one."""

    name: str
    value: str = ""
    unit: str = ""
    style: str = "strong"


class Facts(Canvas):
    """Rows of `name ...... value unit`; what does not fit is left out from the end."""

    UNIT_CELLS = 6

    def show(self, title: str, facts: Sequence[Fact]) -> None:
        width = self.content_size.width
        if not width:
            return
        rows: list[Row] = [heading(title, (), width)] if title else []
        rows += [self._row(fact, width) for fact in facts]
        self.paint(rows)
        self.fit_height(len(rows))

    def _row(self, fact: Fact, width: int) -> Row:
        if not fact.name:
            return ()
        unit = f" {fact.unit:<{self.UNIT_CELLS - 1}}"
        return fill(((fact.name, "muted"), (" ", "")), ((fact.value, fact.style), (unit, "muted")), width)
