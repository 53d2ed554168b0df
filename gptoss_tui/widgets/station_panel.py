"""Below the fields of a station: facts about what was answered there, looked up in a thread."""

from __future__ import annotations

from functools import partial
from typing import Any

from textual import on

from engine.findings import for_forms
from gptoss_tui import bridge
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.panels import Basis, Panel
from gptoss_tui.widgets.canvas import Canvas, Row, heading
from gptoss_tui.widgets.note import wrap


class StationPanel(Canvas):
    """Looks its facts up again when something they depend on has changed."""

    def __init__(self, panel: Panel) -> None:
        super().__init__(classes="station-panel")
        self._panel = panel
        self._depends: object = None
        self._facts: Any = None

    def look(self, basis: Basis, *, again: bool = False) -> None:
        """Show the facts for `basis`; `again` even when nothing in it has changed."""
        depends = self._panel.depends(basis)
        if depends != self._depends or again:
            self._depends, self._facts = depends, None
            self.redraw()
            bridge.ask_from(self, "facts", partial(self._panel.look, basis))

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        self._facts = answer.value
        self.redraw()

    def redraw(self) -> None:
        width = self.content_size.width
        if not width:
            return
        if self._facts is None:
            # The old rows stay until there are new ones: what jumps is hard to read.
            rows = [heading(self._panel.title, (("looking …", "muted"),), width), *self.rows[1:]]
        else:
            rows = [heading(self._panel.title, (), width), *self._fact_rows(width)]
        self.paint(rows)
        self.fit_height(len(rows))

    def _fact_rows(self, width: int) -> list[Row]:
        if not isinstance(self._facts, Failure):
            return self._panel.rows(self._facts, width)
        hint = for_forms(self._facts.hint)
        told = [(f"✗ {self._facts.message}", "bad"), (f"→ {hint}" if hint else "", "text")]
        return [((line, style),) for text, style in told if text for line in wrap(text, width)]
