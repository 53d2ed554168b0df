"""A list to choose one thing from. Answers with the key of the chosen one, None for Escape."""

from __future__ import annotations

from collections.abc import Sequence

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from gptoss_tui.screens.base import Steady
from gptoss_tui.widgets.choices import Choices, Item


def room_for_items(columns: int) -> int:
    """Cells of a line of the list, beside its mark, on a terminal so wide (styles/dialog.tcss)."""
    return max(1, min(110, columns * 9 // 10) - 8)


class ChooseScreen(Steady, ModalScreen[str | None]):
    """Over the screen that asks."""

    CSS_PATH = "../styles/dialog.tcss"
    BINDINGS = [Binding("escape,q", "dismiss(None)", "Cancel", show=False, id="dialog.cancel")]

    def __init__(self, question: str, items: Sequence[Item], highlighted: str) -> None:
        super().__init__()
        self._question = question
        self._items = items
        self._highlighted = highlighted

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(self._question, id="question", markup=False)
            yield Choices(id="items")

    def on_mount(self) -> None:
        choices = self.query_one(Choices)
        choices.show(self._items, self._highlighted)
        choices.focus()

    @on(Choices.Chosen)
    def chosen(self, event: Choices.Chosen) -> None:
        event.stop()
        self.dismiss(event.key)
