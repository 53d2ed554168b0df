"""A text field of one line whose cursor stands still: a blinking one costs a kilobyte a second."""

from __future__ import annotations

from textual.widgets import Input


class LineInput(Input):
    """Textual's input without borders and without blinking."""

    def __init__(self, value: str = "", *, placeholder: str = "", most: int = 0, id: str | None = None) -> None:
        super().__init__(value, placeholder=placeholder, max_length=most, id=id, compact=True)
        self.cursor_blink = False
