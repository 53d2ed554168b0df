"""A question with a few answers. Answers with the key of the chosen one, None for Escape."""

from __future__ import annotations

from dataclasses import dataclass

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from gptoss_tui.screens.base import Steady


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer."""

    key: str
    label: str
    is_harmful: bool = False


class ConfirmScreen(Steady, ModalScreen[str | None]):
    """The first answer has the focus, so the first should be the harmless one."""

    CSS_PATH = "../styles/dialog.tcss"
    BINDINGS = [
        Binding("escape,q", "dismiss(None)", "Cancel", show=False),
        Binding("left,up", "app.focus_previous", "Previous", show=False),
        Binding("right,down", "app.focus_next", "Next", show=False),
    ]

    def __init__(self, question: str, text: str, choices: tuple[Choice, ...]) -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._choices = choices

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(self._question, id="question", markup=False)
            yield Static(self._text, id="text", markup=False)
            with Horizontal(id="choices"):
                for choice in self._choices:
                    classes = "-harmful" if choice.is_harmful else ""
                    yield Button(choice.label, id=f"choice-{choice.key}", classes=classes, compact=True)

    @on(Button.Pressed)
    def answered(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss((event.button.id or "").removeprefix("choice-"))
