"""The last station: all that was chosen and what it would run, with the buttons that act on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Button, Input

from engine.paths import expanded
from engine.settings import Settings
from gptoss_tui import bridge, words
from gptoss_tui.bridge import Answer, Exported, Failure
from gptoss_tui.draft import Draft
from gptoss_tui.review_text import ReviewPage
from gptoss_tui.screens.asking import AskScreen
from gptoss_tui.screens.confirm import Choice, ConfirmScreen
from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.note import Note

if TYPE_CHECKING:
    from engine.imports import Imported
    from engine.megatron_flags import Told
    from engine.plan.plan import Plan
    from engine.plan.rehearsal import Rehearsal
    from engine.presets import Preset
    from gptoss_tui.app import CockpitApp

_BUTTONS = (
    (("launch", "Launch"), ("rehearse", "Rehearse first"), ("export", "Export scripts"), ("copy", "Copy")),
    (("save", "Save as preset"), ("presets", "Presets"), ("import", "Import")),
)
"""Ids and labels; an id is also the action that its button carries out."""


class Review(Vertical):
    """Buttons above, everything else below them in one page to scroll."""

    BINDINGS = [
        Binding("left", "app.focus_previous", "Previous", show=False, id="review.previous"),
        Binding("right", "app.focus_next", "Next", show=False, id="review.next"),
        Binding("up,k", "page(-1)", "Up", show=False, id="review.up"),
        Binding("down,j", "page(1)", "Down", show=False, id="review.down"),
        Binding("b", "rehearse", "Rehearse", id="review.rehearse"),
        Binding("e", "export", "Export scripts", id="review.export"),
        Binding("c", "copy", "Copy", id="review.copy"),
        Binding("s", "save", "Save as preset", id="review.save"),
        Binding("p", "presets", "Presets", id="review.presets"),
        Binding("i", "import", "Import", id="review.import"),
    ]

    class LaunchWanted(Message):
        """Launch the draft under the typed name."""

        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

    class RehearsalMade(Message):
        """A rehearsal of the draft is ready to be offered."""

        def __init__(self, rehearsal: Rehearsal) -> None:
            super().__init__()
            self.rehearsal = rehearsal

    class Adopted(Message):
        """The draft took values from elsewhere; `told` says what and from where."""

        def __init__(self, told: str) -> None:
            super().__init__()
            self.told = told

    def __init__(self, draft: Draft, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._draft = draft
        self._plan: Plan | None = None
        self._page = ReviewPage(parts=[], files={})
        self._has_buttons = False
        self._wants_focus = False

    def compose(self) -> ComposeResult:
        for number, buttons in enumerate(_BUTTONS):
            with Horizontal(classes="review-buttons"):
                for key, label in buttons:
                    yield Button(label, id=key, compact=True)
                if number:
                    yield LineInput(placeholder="name of the run", id="name", most=80)
        with VerticalScroll(id="review-page", can_focus=False):
            yield Note(id="review-text")

    @property
    def _cockpit(self) -> CockpitApp:
        return cast("CockpitApp", self.app)

    def on_mount(self) -> None:
        self._has_buttons = True
        if self._wants_focus:
            self.focus_first()

    def show(self, plan: Plan | None, page: ReviewPage) -> None:
        """Show the page of a plan, or why there is none."""
        self._plan, self._page = plan, page
        self.query_one("#review-text", Note).show_parts(page.parts)

    def action_page(self, direction: int) -> None:
        self.query_one("#review-page").scroll_relative(y=direction * 3, animate=False)

    def focus_first(self) -> None:
        """Give the first button the focus, as soon as there is one."""
        if self._has_buttons:
            self.query_one("#launch").focus()
        else:
            self._wants_focus = True

    # --- actions ---------------------------------------------------------------------

    @on(Button.Pressed)
    async def pressed(self, event: Button.Pressed) -> None:
        event.stop()
        await self.run_action(str(event.button.id))

    def action_launch(self) -> None:
        self.post_message(self.LaunchWanted(self.query_one("#name", Input).value.strip()))

    def action_rehearse(self) -> None:
        services, machine = self._cockpit.services, self._cockpit.machine
        if (plan := self._planned()) and machine is not None and not isinstance(machine, Failure):
            bridge.ask_from(self, "rehearsal", partial(services.rehearsal, self._draft.settings, plan, machine))

    def action_export(self) -> None:
        if plan := self._planned():
            text = (
                "One script for each way to start the run, with settings and plan. The directory must be empty or new."
            )
            place = str(Path.cwd() / f"scripts-{self._draft.name or 'gptoss'}".replace(" ", "-"))
            export, settings = self._cockpit.services.export_scripts, self._draft.settings
            self._ask(
                AskScreen(
                    "Write scripts into which directory?",
                    text,
                    act=lambda directory: export(settings, plan, expanded(directory)),
                    value=place,
                ),
                self._tell_exported,
            )

    def action_copy(self) -> None:
        if self._planned():
            text = "To the clipboard of your terminal, where it allows that, and into a file in any case."
            choices = tuple(Choice(str(place), name) for place, name in enumerate(self._page.files))
            self.app.push_screen(ConfirmScreen("Copy what?", text, choices), self._copy_chosen)

    def action_save(self) -> None:
        text = "What differs from the defaults is kept under this name. Letters, digits, dots, dashes, underscores."
        name = self.query_one("#name", Input).value.strip()
        save, settings = self._cockpit.services.save_preset, self._draft.settings
        question = AskScreen("Save as which preset?", text, act=lambda name: save(name, settings), value=name)
        self._ask(question, lambda path: self.notify(f"Saved as {path}.", title="Preset"))

    def action_presets(self) -> None:
        from gptoss_tui.screens.presets import PresetsScreen

        self.app.push_screen(PresetsScreen(self._draft.settings), self._preset_taken)

    def action_import(self) -> None:
        text = (
            "A distributed_config.env, or a script with a Megatron command line such as 02_train.sh. It is read, never "
            "run. Several files are separated by commas."
        )
        read = self._cockpit.services.import_files
        self._ask(AskScreen("Import which file?", text, act=lambda typed: read(_paths(typed))), self._tell_imported)

    def _ask(self, question: AskScreen, tell: Callable[[Any], object]) -> None:
        """Put a question; `tell` of what its answer came to."""

        def answered(value: Any) -> None:
            if value is not None:
                tell(value)

        self.app.push_screen(question, answered)

    def _planned(self) -> Plan | None:
        if self._plan is None:
            self.notify("There is no plan that works; see the consequence.", severity="error")
        return self._plan

    def _copy_chosen(self, choice: str | None) -> None:
        if choice is None:
            return
        name, text = list(self._page.files.items())[int(choice)]
        self.app.copy_to_clipboard(text)
        bridge.ask_from(self, "copy", partial(self._cockpit.services.keep_copy, name, text))

    def _preset_taken(self, preset: Preset | None) -> None:
        if preset is not None:
            self._adopt(preset.settings, f"preset {preset.name}")

    def _adopt(self, settings: Settings, origin: str) -> None:
        changed = self._draft.adopt(settings)
        self.post_message(self.Adopted(f"{words.plural(changed, 'value')} taken from {origin}; u takes it back."))

    # --- answers ---------------------------------------------------------------------

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        value = answer.value
        if isinstance(value, Failure):
            self.notify(f"{value.message}\n{value.hint}".strip(), severity="error", timeout=10)
        elif answer.name == "rehearsal":
            self.post_message(self.RehearsalMade(value))
        elif answer.name == "copy":
            self.notify(f"Copied, if your terminal takes OSC 52. Also in {value}", title="Copy", timeout=10)

    def _tell_exported(self, exported: Exported) -> None:
        lines = [*(str(path.relative_to(exported.directory)) for path in exported.files), "", *exported.notes]
        question = f"Written to {exported.directory}"
        self.app.push_screen(ConfirmScreen(question, "\n".join(lines).strip(), (Choice("close", "Close"),)))

    def _tell_imported(self, imported: Imported) -> None:
        self._adopt(self._draft.settings.with_values(imported.values), "what was imported")
        parts = {"Understood": imported.understood, "Ignored": imported.ignored, "Cannot be had": imported.impossible}
        lines = []
        for title, told in parts.items():
            lines += [f"{title}:", *(_told(one) for one in told), ""] if told else []
        self.app.push_screen(ConfirmScreen("Imported", "\n".join(lines).strip(), (Choice("close", "Close"),)))


def _paths(typed: str) -> list[Path]:
    return [expanded(part.strip()) for part in typed.split(",") if part.strip()]


def _told(told: Told) -> str:
    became = f" → {told.key}" if told.key else ""
    return f"  {words.shorten(told.text, 60)}{became}" + (f": {told.why}" if told.why else "")
