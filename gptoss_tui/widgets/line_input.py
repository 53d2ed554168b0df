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
    virtual_size: Reactive[Size] = Reactive(Size(0, 0), repaint=False)

    class Refused(Message):
        """A text was pasted that no field of one line can hold; it was left out."""

        def __init__(self, why: str) -> None:
            super().__init__()
            self.why = why

    def __init__(self, value: str = "", *, placeholder: str = "", most: int = 0, id: str | None = None) -> None:
        super().__init__(value, placeholder=placeholder, max_length=most, id=id, compact=True)
        self.cursor_blink = False

    def _on_paste(self, event: events.Paste) -> None:
        # Textual would ring the bell over a long text, and of several lines take the first without a word.
        event.text = event.text.strip("\r\n")
        letters, lines = len(event.text), len(event.text.splitlines())
        if self.max_length and letters > self.max_length:
            told = f"what was pasted has {letters:,} characters and was left out; {self.max_length:,} fit in here"
        elif lines > 1:
            told = f"what was pasted has {lines:,} lines and was left out; one fits in here"
        else:
            return
        event.prevent_default()
        event.stop()
        self.post_message(self.Refused(told))
