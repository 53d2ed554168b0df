"""The last line of every screen: the keys that do something now.

Textual's own footer is a widget per key, mounted anew at every change of focus; this is one line.
"""

from __future__ import annotations

from textual import events
from textual.binding import Binding
from textual.screen import Screen

from gptoss_tui.widgets.canvas import Canvas, Span

_LAST = ("leave", "help")
"""Actions that come last, and keep their place when the line is too short for all."""


class KeyHints(Canvas):
    """The active keys with their meaning; those of the focused widget come first."""

    def __init__(self) -> None:
        super().__init__()
        self._zones: list[tuple[int, int, str]] = []

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._bindings_changed)

    def _bindings_changed(self, screen: Screen[object]) -> None:
        if self.is_attached:
            self.redraw()

    def on_mouse_down(self, event: events.MouseDown) -> None:
        x = event.get_content_offset_capture(self).x
        for start, end, key in self._zones:
            if start <= x < end:
                self.app.simulate_key(key)

    def redraw(self) -> None:
        width = self.content_size.width
        if not width or not self.is_attached:
            return
        spans: list[Span] = [(" ", "")]
        self._zones = []
        used = 1
        bindings = self._shown_bindings()
        kept = [b for action in _LAST for b in bindings if b.action == action]
        reserve = sum(self._length(b) for b in kept)
        for binding in [*(b for b in bindings if b not in kept), *kept]:
            length = self._length(binding)
            reserve -= length if binding in kept else 0
            if used + length + reserve > width + 2:
                continue
            spans += [(self._key(binding), "accent"), (f" {binding.description}  ", "muted")]
            self._zones.append((used, used + length - 2, binding.key))
            used += length
        self.paint([tuple(spans)])

    def _shown_bindings(self) -> list[Binding]:
        found: dict[str, Binding] = {}
        for active in self.screen.active_bindings.values():
            if active.binding.show and active.enabled:
                found.setdefault(active.binding.action, active.binding)
        return list(found.values())

    def _key(self, binding: Binding) -> str:
        return self.app.get_key_display(binding)

    def _length(self, binding: Binding) -> int:
        return len(self._key(binding)) + 1 + len(binding.description) + 2
