"""A question with a few answers. Answers with the key of the chosen one, None for Escape."""

from __future__ import annotations

from dataclasses import dataclass

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
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
        Binding("escape,q", "dismiss(None)", "Cancel", show=False, id="dialog.cancel"),
        Binding("left,up,h,k", "app.focus_previous", "Previous", show=False, id="dialog.previous"),
        Binding("right,down,l,j", "app.focus_next", "Next", show=False, id="dialog.next"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="dialog.page-up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="dialog.page-down"),
    ]

    def __init__(self, question: str, text: str, choices: tuple[Choice, ...]) -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._choices = choices

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(self._question, id="question", markup=False)
            with VerticalScroll(id="page", can_focus=False):
                yield Static(self._text, id="text", markup=False)
            with Horizontal(id="choices"):
                for choice in self._choices:
                    classes = "-harmful" if choice.is_harmful else ""
                    yield Button(choice.label, id=f"choice-{choice.key}", classes=classes, compact=True)

    def action_page(self, direction: int) -> None:
        page = self.query_one("#page")
        page.scroll_relative(y=direction * max(1, page.size.height - 1), animate=False)

    @on(Button.Pressed)
    def answered(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss((event.button.id or "").removeprefix("choice-"))
