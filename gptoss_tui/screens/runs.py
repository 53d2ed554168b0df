"""Every run there is, and what can be done with it."""

from __future__ import annotations

from collections.abc import Iterable

from textual import on
from textual.binding import Binding
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Input

from gptoss_tui import feed, words
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.feed import Overview
from gptoss_tui.run_rows import run_item
from gptoss_tui.screens.base import CockpitScreen
from gptoss_tui.widgets.choices import Choices
from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.note import Note

LOOK_S = 2.0


class RunsScreen(CockpitScreen):
    """A list that keeps itself fresh; `/` narrows it to names, states and steps that hold a text."""

    CSS_PATH = "../styles/runs.tcss"
    PLACE = "runs"
    HELP_TEXT = (
        "Every run in your data directory, the newest first. Enter opens one. A run that is lost has no supervisor "
        "any more, after a restart of the machine for instance: open it and press r to resume it."
    )
    BINDINGS = [
        Binding("q", "leave", "Back"),
        Binding("slash", "filter", "Filter", key_display="/"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._overviews: dict[str, Overview] = {}

    def compose_body(self) -> Iterable[Widget]:
        with Vertical(id="body"):
            yield Choices(id="runs", empty="no runs")
            yield Note(id="about")
            yield LineInput(placeholder="part of a name, state or step", id="filter", most=200)

    def on_mount(self) -> None:
        self.query_one("#runs").focus()
        self.call_after_refresh(self._look)
        self.set_interval(LOOK_S, self._look)

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def _look(self) -> None:
        if self.is_current:
            services, known = self.cockpit.services, dict(self._overviews)
            self.ask("runs", lambda: feed.overviews(services.runs_root(), known))

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if isinstance(answer.value, Failure):
            self.notify(f"{answer.value.message}\n{answer.value.hint}".strip(), severity="error")
        else:
            self._overviews = {one.run.name: one for one in answer.value}
            self._draw()

    @on(Choices.Highlighted)
    @on(Input.Changed)
    def _draw(self) -> None:
        choices = self.query_one(Choices)
        if not (width := choices.content_size.width):
            return
        wanted = self.query_one("#filter", Input).value.lower()
        now = self.cockpit.clock()
        shown = [one for one in self._overviews.values() if wanted in _searchable(one)]
        choices.show([run_item(one, width - 2, now) for one in shown])
        amount = words.plural(len(self._overviews), "run")
        self.show_status(((amount if len(shown) == len(self._overviews) else f"{len(shown)} of {amount}", "muted"),))
        about = self.query_one("#about", Note)
        if one := self._overviews.get(choices.highlighted or ""):
            about.show(one.run.name, one.state.message, more=str(one.run.path))
        else:
            about.show_parts([])

    @on(Choices.Chosen)
    def open(self, event: Choices.Chosen) -> None:
        from gptoss_tui.screens.monitor import MonitorScreen

        self.app.push_screen(MonitorScreen(self._overviews[event.key].run))

    @on(Input.Submitted)
    def filtered(self) -> None:
        self.query_one(Choices).focus()

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def action_leave(self) -> None:
        box = self.query_one("#filter", Input)
        if box.display:
            box.value = ""
            box.display = False
            self.query_one(Choices).focus()
        else:
            super().action_leave()


def _searchable(one: Overview) -> str:
    return f"{one.run.name} {one.state.status} {one.state.step}".lower()
