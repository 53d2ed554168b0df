"""A question with one line as its answer, carried out before the question goes away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from gptoss_tui import bridge
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.draft import LONGEST_TEXT
from gptoss_tui.screens.base import Steady
from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.note import Note

HOW = "Enter takes it, Esc leaves everything as it is."

BEING_DONE = "It is being done and cannot be taken back. Esc again leaves it to go on by itself."
GOES_ON = "It goes on; what comes of it is not told here."


class AskScreen(Steady, ModalScreen[Any]):
    """Enter hands what was typed to `act`, which is called in a thread; the screen answers with what it returns, or
    without one with the text itself.

    What `act` refuses stays in its line to be mended, with the reason below it. Escape, and Enter on an empty line,
    answer None. What is being done cannot be taken back: the first Escape says so, a second one leaves it to go on.
    """

    CSS_PATH = "../styles/dialog.tcss"
    BINDINGS = [Binding("escape", "cancel", "Cancel", show=False, id="dialog.cancel")]

    def __init__(
        self, question: str, text: str, *, act: Callable[[str], Any] = str, value: str = "", is_secret: bool = False
    ) -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._act = act
        self._is_acting = self._may_leave = False
        self._line = LineInput(value, most=LONGEST_TEXT, id="answer")
        self._line.password = is_secret
        self._note = Note(id="note")

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(self._question, id="question", markup=False)
            yield Static(self._text, id="text", markup=False)
            yield self._line
            yield self._note

    def on_mount(self) -> None:
        self._note.show_parts([(HOW, "muted")])

    @on(Input.Changed)
    def typed(self) -> None:
        self._note.show_parts([(HOW, "muted")])

    @on(LineInput.Refused)
    def paste_refused(self, event: LineInput.Refused) -> None:
        self._note.show_parts([(f"✗ {event.why}", "bad")])

    @on(Input.Submitted)
    def submitted(self, event: Input.Submitted) -> None:
        event.stop()
        text = event.value.strip()
        if not text:
            self.dismiss(None)
        elif not self._is_acting:
            self._is_acting, self._may_leave = True, False
            bridge.ask_from(self, "act", partial(self._act, text))

    def action_cancel(self) -> None:
        if self._is_acting and not self._may_leave:
            self._may_leave = True
            self._note.show_parts([(BEING_DONE, "warning")])
            return
        if self._is_acting:
            self.app.notify(GOES_ON, title=self._question, severity="warning", markup=False)
        self.dismiss(None)

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        self._is_acting = False
        if not isinstance(answer.value, Failure):
            self.dismiss(answer.value)
            return
        told = answer.value
        self._note.show_parts([(f"✗ {told.message}", "bad"), (f"→ {told.hint}" if told.hint else "", "text")])
