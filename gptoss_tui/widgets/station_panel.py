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
        self._basis: Basis | None = None
        """None while that of the facts is awaited."""

    def look(self, basis: Basis, *, again: bool = False) -> None:
        """Show the facts for `basis`; they are looked up `again` even when nothing in it has changed."""
        self.look_ahead(basis, again=again)
        self._basis = basis
        self.redraw()

    def look_ahead(self, basis: Basis, *, again: bool = False) -> None:
        """Look up the facts for `basis`, of which the plan is still to come."""
        depends = self._panel.depends(basis)
        if depends != self._depends or again:
            self._depends, self._facts, self._basis = depends, None, None
            bridge.ask_from(self, "facts", partial(self._panel.look, basis))

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        self._facts = answer.value
        if self._basis is not None:
            self.redraw()

    def redraw(self) -> None:
        width = self.content_size.width
        if not width:
            return
        if self._facts is None or self._basis is None:
            # The old rows stay until there are new ones: what jumps is hard to read.
            rows = [heading(self._panel.title, (("looking …", "muted"),), width), *self.rows[1:]]
        else:
            rows = [heading(self._panel.title, (), width), *self._fact_rows(self._basis, width)]
        self.paint(rows)
        self.fit_height(len(rows))

    def _fact_rows(self, basis: Basis, width: int) -> list[Row]:
        if not isinstance(self._facts, Failure):
            return self._panel.rows(self._facts, basis, width)
        hint = for_forms(self._facts.hint)
        told = [(f"✗ {self._facts.message}", "bad"), (f"→ {hint}" if hint else "", "text")]
        return [((line, style),) for text, style in told if text for line in wrap(text, width)]
