"""Help for where one is: a few sentences, and every key with its meaning."""

from __future__ import annotations

from typing import Any

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from gptoss_tui.screens.base import Steady

KEY_CELLS = 14


class HelpScreen(Steady, ModalScreen[None]):
    """Shown over another screen; any of the keys that open it also closes it."""

    CSS_PATH = "../styles/dialog.tcss"
    BINDINGS = [Binding("escape,q,question_mark,f1,enter", "dismiss(None)", "Close", show=False, id="help.close")]

    def __init__(self, text: str, keys: list[tuple[str, str]]) -> None:
        super().__init__()
        self._text = text
        self._keys = keys

    @classmethod
    def about(cls, screen: Screen[Any]) -> HelpScreen:
        """The help for `screen` and what has the focus there."""
        text = screen.help_text() if hasattr(screen, "help_text") else ""
        return cls(text, keys_of(screen))

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="dialog", classes="-help"):
            if self._text:
                yield Static(self._text, id="text", markup=False)
            lines = [f"{key:>{KEY_CELLS}}  {meaning}" for key, meaning in self._keys]
            yield Static("\n".join(lines), id="keys", markup=False)
            yield Static("Esc closes this. : or F2 lists every command by name.", id="note", markup=False)


def is_ours(binding: Binding) -> bool:
    """False for the dozens of keys with which a text field of Textual is edited: those are the usual ones."""
    return bool(binding.id and binding.description) and not binding.system


def keys_of(screen: Screen[Any]) -> list[tuple[str, str]]:
    """The keys that do something on `screen` now, those of the focused widget first."""
    keys: dict[str, list[str]] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if is_ours(binding) and active.enabled:
            shown = keys.setdefault(binding.description, [])
            if (name := screen.app.get_key_display(binding)) not in shown:
                shown.append(name)
    return [(" ".join(names), meaning) for meaning, names in keys.items()]
