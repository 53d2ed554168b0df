"""A list to choose from, in columns; at its ends the arrow keys go on to the next widget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual import events
from textual.binding import Binding
from textual.message import Message

from gptoss_tui.widgets.canvas import Canvas, Row, fill, selected


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the list."""

    key: str
    row: Row


class Choices(Canvas, can_focus=True):
    """One line is highlighted; Enter chooses it."""

    BINDINGS = [
        Binding("enter", "choose", "Open", key_display="enter", id="list.open"),
        Binding("down,j", "move(1)", "Down", show=False, id="list.down"),
        Binding("up,k", "move(-1)", "Up", show=False, id="list.up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="list.page-down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="list.page-up"),
        Binding("home,g", "jump(0)", "First", show=False, id="list.first"),
        Binding("end,G", "jump(-1)", "Last", show=False, id="list.last"),
    ]

    class Highlighted(Message):
        """Another line is highlighted."""

        def __init__(self, choices: Choices, key: str) -> None:
            super().__init__()
            self.choices = choices
            self.key = key

        @property
        def control(self) -> Choices:
            return self.choices

    class Chosen(Highlighted):
        """Enter, or a click on the highlighted line."""

    def __init__(self, *, empty: str = "", id: str | None = None) -> None:
        super().__init__(id=id)
        self._items: list[Item] = []
        self._empty = empty
        self._place = 0
        self._top = 0

    @property
    def highlighted(self) -> str | None:
        """The key of the highlighted line; None for an empty list."""
        return self._items[self._place].key if self._items else None

    @property
    def items(self) -> Sequence[Item]:
        return self._items

    @property
    def hidden(self) -> str:
        """How many lines do not fit, with arrows to where they are; nothing when all are seen."""
        height = self.content_size.height
        above, below = self._top, max(0, len(self._items) - self._top - height) if height else 0
        parts = ([f"↑ {above} more"] if above else []) + ([f"↓ {below} more"] if below else [])
        return "  ".join(parts)

    def show(self, items: Sequence[Item], highlighted: str | None = None) -> None:
        """Show `items`; the line highlighted before stays so unless another is named."""
        wanted = highlighted or self.highlighted
        self._items = list(items)
        keys = [item.key for item in items]
        self._place = keys.index(wanted) if wanted in keys else 0
        self.fit_height(len(items))
        self.redraw()

    def action_choose(self) -> None:
        if key := self.highlighted:
            self.post_message(self.Chosen(self, key))

    def action_move(self, lines: int) -> None:
        place = self._place + lines
        if place < 0:
            self.screen.focus_previous()
        elif place >= len(self._items):
            self.screen.focus_next()
        else:
            self._go(place)

    def action_page(self, pages: int) -> None:
        self._go(self._place + pages * max(1, self.content_size.height - 1))

    def action_jump(self, place: int) -> None:
        self._go(place if place >= 0 else len(self._items) - 1)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        place = self._top + event.get_content_offset_capture(self).y
        if place == self._place and self.has_focus:
            self.action_choose()
        elif place < len(self._items):
            self._go(place)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self._go(self._place + 1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self._go(self._place - 1)

    def _go(self, place: int) -> None:
        place = min(len(self._items) - 1, max(0, place))
        if self._items and place != self._place:
            self._place = place
            self.redraw()
            self.post_message(self.Highlighted(self, self._items[place].key))

    def redraw(self) -> None:
        width, height = self.content_size
        if not width or not height:
            return
        self._top = min(max(0, len(self._items) - height), self._top, self._place)
        self._top = max(self._top, self._place - height + 1)
        rows = [self._row(place, width) for place in range(self._top, min(len(self._items), self._top + height))]
        if not self._items and self._empty:
            rows = [((f"  {self._empty}", "muted"),)]
        self.paint(rows + [()] * (height - len(rows)))

    def _row(self, place: int, width: int) -> Row:
        is_highlighted = place == self._place
        mark = "▸ " if is_highlighted and self.has_focus else "› " if is_highlighted else "  "
        row = fill(((mark, "accent"), *self._items[place].row), (), width)
        return selected(row) if is_highlighted and self.has_focus else row
