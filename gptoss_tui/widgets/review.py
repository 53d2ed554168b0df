"""The last station: all that was chosen and what it would run, with the buttons that act on it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Button, Input

from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.note import Note


class Review(Vertical):
    """Buttons above, everything else below them in one page to scroll."""

    BINDINGS = [
        Binding("left", "app.focus_previous", "Previous", show=False),
        Binding("right", "app.focus_next", "Next", show=False),
        Binding("up", "page(-1)", "Up", show=False),
        Binding("down", "page(1)", "Down", show=False),
    ]

    _has_buttons = False
    _wants_focus = False

    def compose(self) -> ComposeResult:
        with Horizontal(id="review-buttons"):
            yield Button("Launch", id="launch", compact=True)
            yield Button("Save as preset", id="save-preset", compact=True)
            yield LineInput(placeholder="name (of the run or preset)", id="name", most=80)
        with VerticalScroll(id="review-page", can_focus=False):
            yield Note(id="review-text")

    @property
    def name_typed(self) -> str:
        return self.query_one("#name", Input).value.strip()

    def on_mount(self) -> None:
        self._has_buttons = True
        if self._wants_focus:
            self.focus_first()

    def show(self, parts: list[tuple[str, str]]) -> None:
        """Paragraphs as (text, style)."""
        self.query_one("#review-text", Note).show_parts(parts)

    def action_page(self, direction: int) -> None:
        page = self.query_one("#review-page")
        page.scroll_relative(y=direction * 3, animate=False)

    def focus_first(self) -> None:
        """Give the first button the focus, as soon as there is one."""
        if self._has_buttons:
            self.query_one("#launch").focus()
        else:
            self._wants_focus = True
