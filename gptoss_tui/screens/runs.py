"""Every run there is, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from textual import on
from textual.binding import Binding
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import Input

from engine.errors import EngineError
from engine.monitor.labels import Labels
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
    """A list that keeps itself fresh; `/` narrows it to names, states, steps, tags and notes that hold a text."""

    CSS_PATH = "../styles/runs.tcss"
    PLACE = "runs"
    HELP_TEXT = (
        "Every run in your data directory, the newest first. Enter opens one. A run that is lost has no supervisor "
        "any more, after a restart of the machine for instance: open it and press r to resume it.\n\n"
        "Space marks runs, o shows the marked ones in one chart. t writes tags on the highlighted run, n a note; "
        "a puts it away, A shows what was put away."
    )
    BINDINGS = [
        Binding("q", "leave", "Back", id="screen.leave"),
        Binding("slash", "filter", "Filter", key_display="/", id="runs.filter"),
        Binding("space", "mark", "Mark", key_display="space", id="runs.mark"),
        Binding("o", "compare", "Compare", id="runs.compare"),
        Binding("t", "tags", "Tags", id="runs.tags"),
        Binding("n", "note", "Note", id="runs.note"),
        Binding("a", "archive", "Put away", show=False, id="runs.archive"),
        Binding("A", "show_archived", "Show what was put away", show=False, id="runs.show-archived"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._overviews: dict[str, Overview] = {}
        self._marked: set[str] = set()
        self._shows_archived = False

    def compose_body(self) -> Iterable[Widget]:
        with Vertical(id="body"):
            yield Choices(id="runs", empty="no runs")
            yield Note(id="about")
            yield LineInput(placeholder="part of a name, state, step, tag or note", id="filter", most=200)

    def on_mount(self) -> None:
        self.query_one("#runs").focus()
        self.call_after_refresh(self._look_again)
        self.set_interval(LOOK_S, self._look_again)

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def _look_again(self) -> None:
        if not self.is_asking("runs"):
            self._look()

    def _look(self) -> None:
        if self.is_current:
            services, known = self.cockpit.services, dict(self._overviews)
            self.ask("runs", lambda: feed.overviews(services.runs_root(), known))

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if isinstance(answer.value, Failure):
            self.notify(f"{answer.value.message}\n{answer.value.hint}".strip(), severity="error")
        elif answer.name == "label":
            self._look()
        else:
            self._overviews = {one.run.name: one for one in answer.value}
            self._marked &= self._overviews.keys()
            self._draw()

    @on(Choices.Highlighted)
    @on(Input.Changed)
    def _draw(self) -> None:
        choices = self.query_one(Choices)
        if not (width := choices.content_size.width):
            return
        wanted = self.query_one("#filter", Input).value.lower()
        now = self.cockpit.clock()
        listed = [one for one in self._overviews.values() if self._shows_archived or not one.labels.is_archived]
        shown = [one for one in listed if wanted in _searchable(one)]
        choices.show([run_item(one, width - 2, now, is_marked=one.run.name in self._marked) for one in shown])
        amount = words.plural(len(listed), "run")
        told = amount if len(shown) == len(listed) else f"{len(shown)} of {amount}"
        self.show_status(((f"{len(self._marked)} marked  " if self._marked else "", "mark"), (told, "muted")))
        about = self.query_one("#about", Note)
        if one := self._overviews.get(choices.highlighted or ""):
            told = " · ".join(part for part in (one.state.message, one.labels.text) if part)
            about.show(one.run.name, told, more=str(one.run.path))
        else:
            about.show_parts([])

    @on(Choices.Chosen)
    def open(self, event: Choices.Chosen) -> None:
        from gptoss_tui.screens.monitor import MonitorScreen

        self.app.push_screen(MonitorScreen(self._overviews[event.key].run))

    @on(Input.Submitted)
    def filtered(self) -> None:
        self.query_one(Choices).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return not (action in ("tags", "note", "archive") and self.cockpit.services.is_watching)

    def action_mark(self) -> None:
        choices = self.query_one(Choices)
        if (name := choices.highlighted) is not None:
            self._marked ^= {name}
            if name != choices.items[-1].key:
                choices.action_move(1)
            self._draw()

    def action_compare(self) -> None:
        from gptoss_tui.overlay import MOST_RUNS
        from gptoss_tui.screens.compare import CompareScreen

        names = self._marked or {self.query_one(Choices).highlighted or ""}
        runs = [one.run for one in self._overviews.values() if one.run.name in names]
        if len(runs) > MOST_RUNS:
            self.notify(f"{len(runs)} runs are marked; the first {MOST_RUNS} are shown.", severity="warning")
        if runs:
            self.app.push_screen(CompareScreen(runs))

    def action_tags(self) -> None:
        self._ask_for_label(
            "Tags of",
            "Words of small letters, digits, dots, colons and dashes, with blanks between; - for none.",
            lambda one: " ".join(one.labels.tags),
            lambda written, text: replace(written, tags=()).with_tags(text.split()),
        )

    def action_note(self) -> None:
        self._ask_for_label(
            "Note on",
            "What you want to know of this run later; - for none.",
            lambda one: one.labels.note,
            lambda written, text: written.with_note(text),
        )

    def action_archive(self) -> None:
        if one := self._overviews.get(self.query_one(Choices).highlighted or ""):
            self._write(one, replace(one.labels, is_archived=not one.labels.is_archived))

    def action_show_archived(self) -> None:
        self._shows_archived = not self._shows_archived
        self._draw()

    def _ask_for_label(
        self, question: str, text: str, value: Callable[[Overview], str], change: Callable[[Labels, str], Labels]
    ) -> None:
        one = self._overviews.get(self.query_one(Choices).highlighted or "")
        if one is None:
            return

        def answered(typed: str | None) -> None:
            if typed is None:
                return
            try:
                self._write(one, change(one.labels, "" if typed == "-" else typed))
            except EngineError as error:
                self.notify(f"{error.message}\n{error.hint}", severity="error", markup=False)

        from gptoss_tui.screens.asking import AskScreen

        self.app.push_screen(AskScreen(f"{question} {one.run.name}", text, value=value(one)), answered)

    def _write(self, one: Overview, written: Labels) -> None:
        self.ask("label", partial(self.cockpit.services.label_run, one.run, written))

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
    return f"{one.run.name} {one.state.status} {one.state.step} {one.labels.text}".lower()
