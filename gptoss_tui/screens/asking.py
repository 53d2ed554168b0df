"""A question with one line as its answer. Answers with the text, None for Escape."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from gptoss_tui.draft import LONGEST_TEXT
from gptoss_tui.screens.base import Steady
from gptoss_tui.widgets.line_input import LineInput


class AskScreen(Steady, ModalScreen[str | None]):
    """Enter answers with what was typed; nothing typed counts as Escape."""

    CSS_PATH = "../styles/dialog.tcss"
    BINDINGS = [Binding("escape", "dismiss(None)", "Cancel", show=False, id="dialog.cancel")]

    def __init__(self, question: str, text: str, *, value: str = "", is_secret: bool = False) -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._line = LineInput(value, most=LONGEST_TEXT, id="answer")
        self._line.password = is_secret

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(self._question, id="question", markup=False)
            yield Static(self._text, id="text", markup=False)
            yield self._line
            yield Static("Enter takes it, Esc leaves everything as it is.", id="note", markup=False)

    @on(Input.Submitted)
    def answered(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value.strip() or None)
