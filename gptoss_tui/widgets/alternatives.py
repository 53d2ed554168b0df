"""A choice among a few words, all of them in view: left and right walk through them."""

from __future__ import annotations

from textual import events
from textual.binding import Binding
from textual.message import Message

from gptoss_tui.widgets.canvas import Canvas, Row, Span, cut, width_of


class Alternatives(Canvas, can_focus=True):
    """`auto  gpu  cpu` with one of them marked; with too little room only the marked one."""

    BINDINGS = [
        Binding("left,h", "step(-1)", "Previous", show=False, id="choice.previous"),
        Binding("right,space,l", "step(1)", "Choose", key_display="← →", id="choice.next"),
        Binding("enter", "accept", "Next field", show=False, id="choice.accept"),
    ]

    class Changed(Message):
        """Another word is marked."""

        def __init__(self, alternatives: Alternatives, value: str) -> None:
            super().__init__()
            self.alternatives = alternatives
            self.value = value

        @property
        def control(self) -> Alternatives:
            return self.alternatives

    class Accepted(Changed):
        """Enter was pressed."""

    def __init__(self, words: tuple[str, ...], value: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._words = words
        self._value = value

    @property
    def value(self) -> str:
        return self._value

    @value.setter
    def value(self, value: str) -> None:
        self._value = value
        self.redraw()

    def action_step(self, direction: int) -> None:
        place = self._words.index(self._value) if self._value in self._words else 0
        self._choose(self._words[(place + direction) % len(self._words)])

    def action_accept(self) -> None:
        self.post_message(self.Accepted(self, self._value))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        x, start = event.get_content_offset_capture(self).x, 0
        for word in self._words:
            if start <= x < start + len(word) + 2:
                self._choose(word)
            start += len(word) + 3

    def _choose(self, word: str) -> None:
        if word != self._value:
            self.value = word
            self.post_message(self.Changed(self, word))

    def redraw(self) -> None:
        width = self.content_size.width
        if not width:
            return
        full = self._all_words()
        self.paint([full if width_of(full) <= width else cut(self._one_word(), width)])

    def _all_words(self) -> Row:
        spans: list[Span] = []
        for word in self._words:
            if word == self._value:
                # Brackets tell without colour which one it is.
                spans.append((f"[{word}]", "accent+selected" if self.has_focus else "strong"))
            else:
                spans.append((f" {word} ", "muted"))
            spans.append((" ", ""))
        return tuple(spans[:-1])

    def _one_word(self) -> Row:
        style = "accent+selected" if self.has_focus else "strong"
        return (("‹ ", "muted"), (f"[{self._value}]", style), (" ›", "muted"))
