"""What all screens share: the title line, the key line, leaving, and slow calls in threads."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingsMap
from textual.dom import DOMNode
from textual.keys import key_to_character
from textual.reactive import Reactive
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from engine.errors import ExitCode
from gptoss_tui import bridge
from gptoss_tui.frugal import FrugalCompositor
from gptoss_tui.widgets.canvas import Row
from gptoss_tui.widgets.key_hints import KeyHints
from gptoss_tui.widgets.title_bar import TitleBar

if TYPE_CHECKING:
    from gptoss_tui.app import CockpitApp

_TOO_SMALL = (
    "This terminal is too small.\n\ngptoss needs {} columns and {} rows; this one has {} and {}.\n"
    "Enlarge it, make its letters smaller, or press q to leave: runs go on. "
    "gptoss new --plain and --headless need no room."
)


_FRAME_S = 1 / 125
SETTLED_S = 5.0
"""So long after it was opened all is there that stays as long as the screen does."""


class TooSmall(Static):
    """What a terminal shows that has no room for the screens."""

    def on_resize(self) -> None:
        from gptoss_tui.app import LEAST_COLUMNS, LEAST_ROWS

        self.update(_TOO_SMALL.format(LEAST_COLUMNS, LEAST_ROWS, self.app.size.width, self.app.size.height))


class Steady(Screen[Any]):
    """A screen that paints no more than it must.

    It ignores news of a size that is not the terminal's any more.
    Textual's screen posts its own new size to itself (screen.py:1370, 8.2.8). When two sizes come
    shortly after one another they chase each other round the queue for ever, painting at every turn.
    """

    focused: Reactive[Widget | None] = Reactive(None, repaint=False)
    """Textual's own repaints the whole screen when the focus moves; the two widgets do that themselves."""

    def __init__(self) -> None:
        super().__init__()
        self._compositor = FrugalCompositor()
        self._frames: Timer | None = None

    @property
    def _update_timer(self) -> Timer:
        # Textual's own lets 17 ms pass between two pictures; what a key changes comes in two or three of them.
        if self._frames is None:
            self._frames = self.set_interval(_FRAME_S, self._on_timer_update, name="frames", pause=True)
        return self._frames

    @property
    def _binding_chain(self) -> list[tuple[DOMNode, BindingsMap]]:
        chain = super()._binding_chain
        # Textual (8.2.8) takes out the keys that a text field needs for typing before it puts in the person's own
        # keys, so that those would act in the middle of a word.
        for place, (node, _) in enumerate(chain):
            for _, bindings in chain[place + 1 :]:
                for key in list(bindings.key_to_bindings):
                    if node.check_consume_key(key, key_to_character(key)):
                        del bindings.key_to_bindings[key]
        return chain

    def _on_resize(self, event: events.Resize) -> None:  # type: ignore[override]
        if event.size != self.app.size:
            event.stop()
            event.prevent_default()


class CockpitScreen(Steady):
    """A full screen; Escape steps out of it, and out of the last one the program ends."""

    PLACE = ""
    HELP_TEXT = ""
    """A few sentences that the help screen shows above the keys."""
    BINDINGS = [
        Binding("escape", "leave", "Back", show=False, id="screen.back"),
        Binding("q", "leave", "Quit", id="screen.leave"),
    ]

    def on_mount(self) -> None:
        # Looking for garbage among what stays is a tenth of the work of a screen that is open for days, and now and
        # then holds up a key.
        self.set_timer(SETTLED_S, lambda: gc.freeze())

    def on_unmount(self) -> None:
        gc.unfreeze()

    @property
    def cockpit(self) -> CockpitApp:
        return cast("CockpitApp", self.app)

    @property
    def title_bar(self) -> TitleBar:
        return self.query_one(TitleBar)

    def compose(self) -> ComposeResult:
        yield TitleBar(self.PLACE)
        yield from self.compose_body()
        yield KeyHints()
        yield TooSmall(id="too-small")

    def compose_body(self) -> Iterable[Widget]:
        """The widgets between the title line and the key line."""
        raise NotImplementedError

    def show_status(self, status: Row, place: str | None = None) -> None:
        """Write into the title line."""
        self.title_bar.show(status, place)

    def ask(self, name: str, call: Callable[[], Any]) -> None:
        """Call the engine in a thread; an `Answer` called `name` comes back, only for the latest question."""
        bridge.ask_from(self, name, call)

    def is_asking(self, name: str) -> bool:
        """True while the answer to `name` is awaited: what is asked every few seconds would never be answered
        where an answer takes longer than that.
        """
        return any(one.node is self and one.group == name and not one.is_finished for one in self.workers)

    def action_leave(self) -> None:
        # The stack also holds what lies below: from the first screen there is nowhere to go but out.
        if len(self.app.screen_stack) > 1:
            self.dismiss(None)
        else:
            self.app.exit(ExitCode.DONE)

    def help_text(self) -> str:
        """What F1 shows for the widget that has the focus."""
        return self.HELP_TEXT
