"""Where one starts: a preset to launch, a run to look at, or new settings of one's own."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from textual import events, on
from textual.binding import Binding
from textual.containers import Vertical
from textual.widget import Widget

from gptoss_tui import words
from gptoss_tui.bridge import Answer, Failure, Services
from gptoss_tui.preset_rows import preset_item
from gptoss_tui.screens.base import CockpitScreen
from gptoss_tui.screens.launching import Launching, Offer
from gptoss_tui.widgets.choices import Choices, Item
from gptoss_tui.widgets.note import Note
from gptoss_tui.widgets.rule import Rule

if TYPE_CHECKING:
    from engine.presets import Preset
    from gptoss_tui.feed import Overview

RUNS_S = 2.0
MOST_RUNS = 50


class HomeScreen(Launching, CockpitScreen):
    """Presets above, runs below, and a few words about the highlighted one."""

    CSS_PATH = "../styles/home.tcss"
    PLACE = "home"
    HELP_TEXT = (
        "A preset is a named starting point: Enter shows what it would do here and starts it when you agree. "
        "n opens the set-up, where every value can be changed first.\n\n"
        "A run goes on by itself once it is started: gptoss only looks at it. Enter on a run opens it."
    )
    BINDINGS = [
        Binding("q", "leave", "Quit", id="screen.leave"),
        Binding("n", "new", "New set-up", id="home.new"),
        Binding("r", "runs", "Runs", id="home.runs"),
        Binding("d", "doctor", "Doctor", id="home.doctor"),
        Binding("p", "presets", "Presets", show=False, id="home.presets"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._presets: dict[str, Preset] = {}
        self._overviews: dict[str, Overview] = {}
        self._live = 0
        """Runs at work."""

    def compose_body(self) -> Iterable[Widget]:
        with Vertical(id="home"):
            yield Rule("Start from a preset", id="presets-title")
            yield Choices(id="presets", empty="reading …")
            yield Rule("Runs", id="runs-title")
            yield Choices(id="runs", empty="none yet: Enter on a preset starts one")
            yield Note(id="about")

    def on_mount(self) -> None:
        self.show_status((("looking at this machine …", "muted"),))
        self.query_one("#presets").focus()
        self.cockpit.machine_found.subscribe(self, lambda _: self._machine_found())
        # After the first frame: reading files is slow on a cold or distant disk.
        self.call_after_refresh(self._load)
        self.set_interval(RUNS_S, self._look_at_runs)
        self._machine_found()

    def _load(self) -> None:
        self.ask("presets", self.cockpit.services.presets)
        self._look_at_runs()

    def on_screen_resume(self) -> None:
        self._look_at_runs()

    def _look_at_runs(self) -> None:
        if self.is_current and not self.is_asking("runs"):
            self.ask("runs", partial(_newest_runs, self.cockpit.services, dict(self._overviews)))

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if self.take_launch_answer(answer):
            return
        if isinstance(answer.value, Failure):
            self.notify(f"{answer.value.message}\n{answer.value.hint}".strip(), severity="error", timeout=10)
        elif answer.name == "presets":
            self._presets = {preset.name: preset for preset in answer.value}
            self._sort_presets()
        elif answer.name == "runs":
            self._overviews = {one.run.name: one for one in answer.value}
            self._draw_runs()

    def _machine_found(self) -> None:
        machine = self.cockpit.machine
        if machine is not None and not isinstance(machine, Failure):
            self.show_status(((machine.headline, "text"),))
            self._sort_presets()
        elif isinstance(machine, Failure):
            self.show_status(((machine.message, "bad"),))

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw_presets)
        self.call_after_refresh(self._draw_runs)

    def _sort_presets(self) -> None:
        """What suits this machine comes first, once both are known, and is what Enter would open."""
        from engine.presets import suited_first

        machine = self.cockpit.machine
        if machine is not None and not isinstance(machine, Failure):
            gpus = [gpu.short_name for gpu in machine.gpus]
            self._presets = {one.name: one for one in suited_first(self._presets.values(), gpus)}
        self._draw_presets(next(iter(self._presets), None))

    def _draw_presets(self, highlighted: str | None = None) -> None:
        choices = self.query_one("#presets", Choices)
        width = choices.content_size.width
        if width:
            name_width = max(map(len, self._presets), default=0)
            choices.show([preset_item(one, width - 2, name_width) for one in self._presets.values()], highlighted)
            self._describe()

    def _draw_runs(self) -> None:
        choices = self.query_one("#runs", Choices)
        width = choices.content_size.width
        if not width:
            return
        choices.show(self._run_items(width - 2) if self._overviews else [])
        self._live = sum(one.state.status.is_live for one in self._overviews.values())
        self.set_class(not self._overviews, "-no-runs")
        self._describe()

    def _run_items(self, width: int) -> list[Item]:
        from gptoss_tui.run_rows import run_item  # not needed for the first frame

        return [run_item(one, width, self.cockpit.clock()) for one in self._overviews.values()]

    @on(events.DescendantFocus)
    @on(events.DescendantBlur)
    def _focus_moved(self) -> None:
        for name in ("presets", "runs"):
            self.query_one(f"#{name}-title", Rule).show(is_bright=self.query_one(f"#{name}").has_focus)
        self._describe()

    @on(Choices.Highlighted)
    def _describe(self) -> None:
        """Say something about the line that Enter would open."""
        about = self.query_one("#about", Note)
        runs, presets = self.query_one("#runs", Choices), self.query_one("#presets", Choices)
        if runs.has_focus and (one := self._overviews.get(runs.highlighted or "")):
            about.show(one.run.name, one.state.message or str(one.run.path))
        elif preset := self._presets.get(presets.highlighted or ""):
            about.show(preset.title, preset.summary)
        # How much is seen is known after the layout.
        self.call_after_refresh(self._tell_hidden)

    def _tell_hidden(self) -> None:
        """Say in the titles how much of the lists does not fit."""
        presets = words.plural(len(self._presets), "preset") if self._presets else ""
        live = f"{self._live} at work" if self._live else ""
        for name, count, style in (("presets", presets, "muted"), ("runs", live, "accent")):
            hidden = self.query_one(f"#{name}", Choices).hidden
            spans = [(f"{hidden}  " if count else hidden, "muted")] if hidden else []
            spans += [(count, style)] if count else []
            self.query_one(f"#{name}-title", Rule).show(right=tuple(spans))

    @on(Choices.Chosen, "#presets")
    def open_preset(self, event: Choices.Chosen) -> None:
        preset = self._presets[event.key]
        self.offer(Offer(settings=preset.settings, title=preset.title, preset=preset))

    @on(Choices.Chosen, "#runs")
    def open_run(self, event: Choices.Chosen) -> None:
        self.open_monitor(self._overviews[event.key].run)

    def action_new(self) -> None:
        from gptoss_tui.screens.setup import SetupScreen

        highlighted = self.query_one("#presets", Choices).highlighted
        self.app.push_screen(SetupScreen(preset=self._presets.get(highlighted or "")))

    def action_runs(self) -> None:
        from gptoss_tui.screens.runs import RunsScreen

        self.app.push_screen(RunsScreen())

    def action_presets(self) -> None:
        from engine.settings import Settings
        from gptoss_tui.screens.presets import PresetsScreen

        self.app.push_screen(PresetsScreen(Settings()), self._preset_taken)

    def _preset_taken(self, preset: Preset | None) -> None:
        from gptoss_tui.screens.setup import SetupScreen

        if preset is not None:
            self.app.push_screen(SetupScreen(preset=preset))

    def action_doctor(self) -> None:
        from gptoss_tui.screens.doctor import DoctorScreen

        self.app.push_screen(DoctorScreen())


def _newest_runs(services: Services, known: dict[str, Overview]) -> list[Overview]:
    from gptoss_tui import feed  # not needed for the first frame

    return feed.kept(feed.overviews(services.runs_root(), known))[:MOST_RUNS]
