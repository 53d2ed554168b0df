"""What all screens share: the title line, the key line, leaving, and slow calls in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding
from textual.screen import Screen
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
    "This terminal is too small.\n\ngptoss needs 60 columns and 20 rows.\nEnlarge it, or press q to leave: runs go on."
)


class Steady(Screen[Any]):
    """A screen that paints no more than it must.

    It ignores news of a size that is not the terminal's any more.
    Textual's screen posts its own new size to itself (screen.py:1370, 8.2.8). When two sizes come
    shortly after one another they chase each other round the queue for ever, painting at every turn.
    """

    def __init__(self) -> None:
        super().__init__()
        self._compositor = FrugalCompositor()

    def _on_resize(self, event: events.Resize) -> None:  # type: ignore[override]
        if event.size != self.app.size:
            event.stop()
            event.prevent_default()


class CockpitScreen(Steady, Screen[None]):
    """A full screen; Escape steps out of it, and out of the last one the program ends."""

    PLACE = ""
    HELP_TEXT = ""
    """A few sentences that the help screen shows above the keys."""
    BINDINGS = [
        Binding("escape", "leave", "Back", show=False),
        Binding("q", "leave", "Quit"),
    ]

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
        yield Static(_TOO_SMALL, id="too-small")

    def compose_body(self) -> Iterable[Widget]:
        """The widgets between the title line and the key line."""
        raise NotImplementedError

    def show_status(self, status: Row, place: str | None = None) -> None:
        """Write into the title line."""
        self.title_bar.show(status, place)

    def ask(self, name: str, call: Callable[[], Any]) -> None:
        """Call the engine in a thread; an `Answer` called `name` comes back, only for the latest question."""
        self.run_worker(
            partial(bridge.ask, self, name, call),
            thread=True,
            exclusive=True,
            exit_on_error=False,
            group=name,
        )

    def action_leave(self) -> None:
        # The stack also holds what lies below: from the first screen there is nowhere to go but out.
        if len(self.app.screen_stack) > 1:
            self.dismiss(None)
        else:
            self.app.exit(ExitCode.DONE)

    def help_text(self) -> str:
        """What F1 shows for the widget that has the focus."""
        return self.HELP_TEXT
