"""The presets beside a set-up: what each would change, and the person's own to be deleted."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from textual import on
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.widget import Widget

from engine.settings import Settings
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.preset_rows import preset_item
from gptoss_tui.review_text import change_line
from gptoss_tui.screens.base import CockpitScreen
from gptoss_tui.screens.confirm import Choice, ConfirmScreen
from gptoss_tui.widgets.choices import Choices
from gptoss_tui.widgets.note import Note
from gptoss_tui.widgets.rule import Rule

if TYPE_CHECKING:
    from engine.presets import Preset


class PresetsScreen(CockpitScreen):
    """Answers with the preset that was taken, None when none was."""

    CSS_PATH = "../styles/presets.tcss"
    PLACE = "presets"
    HELP_TEXT = (
        "Below the list stands what the highlighted preset sets otherwise than your set-up. Enter takes all its "
        "values; undo gives yours back. Presets of your own are files that you can copy and share."
    )
    BINDINGS = [
        Binding("q", "leave", "Back", id="screen.leave"),
        Binding("x,delete", "delete", "Delete", id="presets.delete"),
    ]

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._presets: dict[str, Preset] = {}

    def compose_body(self) -> Iterable[Widget]:
        with Vertical(id="body"):
            yield Choices(id="presets", empty="reading …")
            yield Rule("what it would change", id="changes-title")
            with VerticalScroll(can_focus=False):
                yield Note(id="changes")

    def on_mount(self) -> None:
        self.query_one("#presets").focus()
        self.call_after_refresh(self._load)

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def _load(self) -> None:
        self.ask("presets", self.cockpit.services.presets)

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if isinstance(answer.value, Failure):
            self.notify(f"{answer.value.message}\n{answer.value.hint}".strip(), severity="error", timeout=10)
        elif answer.name == "presets":
            self._presets = {preset.name: preset for preset in self._suited_first(answer.value)}
            self._draw()
        elif answer.name == "delete":
            self.notify(f"{answer.value} is deleted.")
            self._load()

    def _suited_first(self, found: Iterable[Preset]) -> Iterable[Preset]:
        """In the order of the first screen."""
        from engine.presets import suited_first

        machine = self.cockpit.machine
        if machine is None or isinstance(machine, Failure):
            return found
        return suited_first(found, [gpu.short_name for gpu in machine.gpus])

    def _draw(self) -> None:
        choices = self.query_one("#presets", Choices)
        if width := choices.content_size.width:
            name_width = max(map(len, self._presets), default=0)
            choices.show([preset_item(one, width - 2, name_width) for one in self._presets.values()])
            self._describe()

    @on(Choices.Highlighted)
    def _describe(self) -> None:
        from engine.presets import differences

        preset = self._highlighted
        if preset is None:
            return
        changed = differences(self._settings, preset.settings)
        lines = [change_line(key, before, after) for key, (before, after) in changed.items()]
        self.query_one("#changes-title", Rule).show(right=((f"{len(changed)} values", "muted"),))
        parts = [
            (preset.summary, "muted"),
            ("\n".join(lines) or "nothing: it is the same", "text"),
            (str(preset.path), "muted"),
        ]
        self.query_one("#changes", Note).show_parts(parts)
        self.refresh_bindings()

    @property
    def _highlighted(self) -> Preset | None:
        return self._presets.get(self.query_one("#presets", Choices).highlighted or "")

    @on(Choices.Chosen)
    def taken(self, event: Choices.Chosen) -> None:
        self.dismiss(self._presets[event.key])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "delete":
            return self.is_attached and self._highlighted is not None and self._highlighted.is_user
        return True

    def action_delete(self) -> None:
        preset = self._highlighted
        if preset is None:
            return
        choices = (Choice("no", "Keep it"), Choice("delete", "Delete it", is_harmful=True))
        question = ConfirmScreen(f"Delete your preset {preset.name}?", str(preset.path), choices)
        self.app.push_screen(question, partial(self._delete_decided, preset.name))

    def _delete_decided(self, name: str, choice: str | None) -> None:
        if choice == "delete":
            self.ask("delete", partial(self.cockpit.services.delete_preset, name))
