"""A text field of one line whose cursor stands still: a blinking one costs a kilobyte a second."""

from __future__ import annotations

from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.reactive import Reactive
from textual.widgets import Input


class LineInput(Input):
    """Textual's input without borders and without blinking."""

    # A longer text changes no layout: Textual would place every widget of the screen anew at each letter.
    virtual_size: Reactive[Size] = Reactive(Size(0, 0))

    class TooLong(Message):
        """A text was pasted that is longer than what the field takes; it was left out."""

        def __init__(self, letters: int, most: int) -> None:
            super().__init__()
            self.letters = letters
            self.most = most

    def __init__(self, value: str = "", *, placeholder: str = "", most: int = 0, id: str | None = None) -> None:
        super().__init__(value, placeholder=placeholder, max_length=most, id=id, compact=True)
        self.cursor_blink = False

    def _on_paste(self, event: events.Paste) -> None:
        if self.max_length and len(event.text) > self.max_length:
            # Textual would ring the bell and say nothing.
            event.prevent_default()
            event.stop()
            self.post_message(self.TooLong(len(event.text), self.max_length))
