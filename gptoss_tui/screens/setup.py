"""The guided set-up: seven stations, each a form, with the consequence of every answer beside it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from textual import events, on
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Button, Input

from engine.plan.plan import Plan
from engine.settings import OPTIONS, Settings
from gptoss_tui import draft as drafts
from gptoss_tui import review_text
from gptoss_tui.bridge import Answer, Failure, attempt
from gptoss_tui.draft import Draft
from gptoss_tui.screens.launching import Launching, Offer
from gptoss_tui.stations import BY_KEY, SHAPES, STATIONS, STYLES, standings
from gptoss_tui.widgets.choices import Choices, Item
from gptoss_tui.widgets.consequence import Consequence
from gptoss_tui.widgets.field import Field, field_of
from gptoss_tui.widgets.form import Form
from gptoss_tui.widgets.note import Note
from gptoss_tui.widgets.review import Review

if TYPE_CHECKING:
    from engine.presets import Preset

PLAN_DELAY_S = 0.05
"""Wait this long after the last letter before planning anew."""


class SetupScreen(Launching):
    """Owns the draft; every field edits it, and everything shown is derived from it."""

    CSS_PATH = "../styles/setup.tcss"
    PLACE = "set-up"
    HELP_TEXT = (
        "Walk through the stations in any order; nothing typed is lost. Arrows, Tab and Enter go from field to "
        "field, Page Up and Page Down from station to station, Escape back to the list of stations."
    )
    BINDINGS = [
        Binding("pagedown", "station(1)", "Next station", key_display="pgdn", priority=True),
        Binding("pageup", "station(-1)", "Station before", show=False, key_display="pgup", priority=True),
        Binding("f3", "advanced", "Advanced"),
        Binding("ctrl+z,u", "undo", "Undo"),
        Binding("ctrl+y", "redo", "Redo", show=False),
        Binding("f8", "review", "Review"),
        Binding("escape", "leave", "Back", show=False),
        Binding("q", "leave", "Leave"),
    ]

    def __init__(
        self, settings: Settings | None = None, *, preset: Preset | None = None, draft: Draft | None = None
    ) -> None:
        super().__init__()
        if draft is None:
            base = preset.settings if preset is not None else settings
            draft = Draft(base, preset.name if preset is not None else "")
        self.draft = draft
        self._station = STATIONS[0].key
        self._seen = {self._station}
        self._outcome: Plan | Failure | None = None
        self._plan_timer = self.set_timer(0, self._plan_now, pause=True)

    def compose_body(self) -> Iterable[Widget]:
        with Horizontal(id="setup"):
            yield Choices(id="rail")
            yield Vertical(id="stations")
            with Vertical(id="aside"):
                yield Consequence(id="consequence")
                yield Note(id="about")

    def on_mount(self) -> None:
        self.show_status((), place=f"set-up › {self.draft.name or 'your own'}")
        self._draw_rail()
        self.query_one("#rail").focus()
        self.cockpit.machine_found.subscribe(self, lambda _: self._machine_known())
        self.call_after_refresh(self._open_station)
        self._plan_soon()

    # --- stations --------------------------------------------------------------------

    @on(Choices.Highlighted, "#rail")
    def station_highlighted(self, event: Choices.Highlighted) -> None:
        self._go_to(event.key)

    @on(Choices.Chosen, "#rail")
    def station_chosen(self) -> None:
        self._focus_station()

    def action_station(self, direction: int) -> None:
        keys = [station.key for station in STATIONS]
        place = keys.index(self._station) + direction
        if 0 <= place < len(keys):
            self._go_to(keys[place])
            self._focus_station()

    def action_review(self) -> None:
        self._go_to("review")
        self._focus_station()

    @on(Form.Left)
    def form_left(self, event: Form.Left) -> None:
        if event.direction > 0:
            self.action_station(1)
        else:
            self.query_one("#rail").focus()

    def _go_to(self, key: str) -> None:
        self.draft.close_step()
        self._station = key
        self._seen.add(key)
        self._open_station()
        self._draw_rail()

    def _open_station(self) -> None:
        """Show the pane of the station, made when it is first wanted."""
        panes = self.query_one("#stations")
        for pane in panes.children:
            pane.display = pane.id == f"form-{self._station}"
        if not panes.query_children(f"#form-{self._station}"):
            panes.mount(self._make_pane())
        self._show_own_facts()
        if self._station == "review":
            self._review()

    def _make_pane(self) -> Widget:
        if self._station == "review":
            return Review(id="form-review")
        keys = [station.key for station in STATIONS]
        following = STATIONS[keys.index(self._station) + 1]
        return Form(
            BY_KEY[self._station],
            self.draft,
            next_title=following.title,
            shows_advanced=self.has_class("-show-advanced"),
        )

    def _focus_station(self) -> None:
        def focus() -> None:
            pane = self.query_one(f"#form-{self._station}")
            assert isinstance(pane, (Form, Review))
            pane.focus_first()

        self.call_after_refresh(focus)

    def _draw_rail(self) -> None:
        failure = self._outcome if isinstance(self._outcome, Failure) else None
        standing = standings(self.draft, self._seen, failure)
        items = [
            Item(
                station.key,
                (
                    (f"{SHAPES[standing[station.key]]} ", STYLES[standing[station.key]]),
                    (station.title, "text"),
                ),
            )
            for station in STATIONS
        ]
        self.query_one("#rail", Choices).show(items, self._station)

    # --- editing ---------------------------------------------------------------------

    @on(Field.Changed)
    def edited(self, event: Field.Changed) -> None:
        event.field.show_problem(self.draft.set(event.field.option.key, event.text))
        self._after_edit()

    def action_undo(self) -> None:
        self._refill(self.draft.undo())

    def action_redo(self) -> None:
        self._refill(self.draft.redo())

    def _refill(self, key: str | None) -> None:
        if key is None:
            return
        station = next(station for station in STATIONS if OPTIONS[key].table in station.tables)
        if station.key != self._station:
            self._go_to(station.key)
        if OPTIONS[key].advanced and not self.has_class("-show-advanced"):
            self.action_advanced()
        for form in self.query(Form):
            form.refill()
        self.call_after_refresh(lambda: self.query_one(f"#form-{station.key}", Form).focus_option(key))
        self._after_edit()

    def _after_edit(self) -> None:
        problem = attempt(self.draft.save)
        if isinstance(problem, Failure):
            self.notify(f"The draft is not kept: {problem.message}", severity="warning")
        self._plan_soon()

    def action_advanced(self) -> None:
        self.toggle_class("-show-advanced")
        if self.has_class("-show-advanced"):
            for form in self.query(Form):
                form.show_advanced()

    # --- the consequence -------------------------------------------------------------

    def _machine_known(self) -> None:
        self._show_own_facts()
        self._plan_soon()

    def _show_own_facts(self) -> None:
        machine = self.cockpit.machine
        self.query_one(Consequence).show_for(self._station, None if isinstance(machine, Failure) else machine)

    def _plan_soon(self) -> None:
        self._draw_rail()
        self.query_one(Consequence).show_stale()
        self._plan_timer.stop()
        self._plan_timer = self.set_timer(PLAN_DELAY_S, self._plan_now)

    def _plan_now(self) -> None:
        machine = self.cockpit.machine
        if machine is not None and not isinstance(machine, Failure):
            self.ask("plan", partial(self.cockpit.services.plan, self.draft.settings, machine))
        elif isinstance(machine, Failure):
            self._planned_outcome(machine)

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if self.take_launch_answer(answer):
            return
        if answer.name == "plan":
            self._planned_outcome(answer.value)
        elif answer.name == "review":
            self._review_answered(answer.value)
        elif isinstance(answer.value, Failure):
            self.notify(f"{answer.value.message}\n{answer.value.hint}".strip(), severity="error", timeout=10)
        elif answer.name == "save-preset":
            self.notify(f"Saved as {answer.value}.", title="Preset")

    def _planned_outcome(self, outcome: Plan | Failure) -> None:
        self._outcome = outcome
        missing = tuple(drafts.missing(self.draft.settings).values())
        self.query_one(Consequence).show(self.draft.settings, outcome, missing)
        self._draw_rail()
        if self._station == "review":
            self._review()

    # --- review ----------------------------------------------------------------------

    def _review(self) -> None:
        plan = self._outcome
        if isinstance(plan, Plan):
            self.ask("review", partial(self._review_parts, plan))
        elif isinstance(plan, Failure):
            self._show_review([(f"✗ {plan.message}", "bad"), (plan.hint, "text")])

    def _review_parts(self, plan: Plan) -> tuple[Plan, review_text.Parts]:
        services, machine = self.cockpit.services, self.cockpit.machine
        assert machine is not None and not isinstance(machine, Failure)
        findings = services.check(self.draft.settings, plan, machine)
        return plan, review_text.review_parts(self.draft, plan, findings, services.runs_root())

    def _review_answered(self, answer: tuple[Plan, review_text.Parts] | Failure) -> None:
        if isinstance(answer, Failure):
            self._show_review([(answer.message, "bad"), (answer.hint, "text")])
        elif answer[0] is self._outcome:  # else the settings have changed meanwhile
            self._show_review(answer[1])

    def _show_review(self, parts: review_text.Parts) -> None:
        def show() -> None:
            for review in self.query(Review):
                review.show(parts)

        self.call_after_refresh(show)

    @on(Button.Pressed, "#launch")
    def launch_pressed(self) -> None:
        open_points = [*map(str, self.draft.problems.values()), *drafts.missing(self.draft.settings).values()]
        if open_points:
            self.notify("\n".join(open_points[:4]), title="Still to be mended", severity="error")
        elif isinstance(self._outcome, Plan):
            title = f"Start {self.draft.name or 'this set-up'}?"
            self.offer(Offer(settings=self.draft.settings, title=title, name=self.query_one(Review).name_typed))
        else:
            self.notify("There is no plan that works; see the consequence.", severity="error")

    @on(Button.Pressed, "#save-preset")
    def save_preset_pressed(self) -> None:
        name = self.query_one(Review).name_typed
        if not name:
            self.notify("Type a name for the preset into the field beside the button.")
            self.query_one("#name", Input).focus()
        else:
            self.ask("save-preset", partial(self.cockpit.services.save_preset, name, self.draft.settings))

    def forget_draft(self) -> None:
        Draft.forget()

    # --- help and leaving ------------------------------------------------------------

    @on(events.DescendantFocus)
    def focus_moved(self) -> None:
        self.draft.close_step()
        field = field_of(self.focused)
        about = self.query_one("#about", Note)
        if field is None:
            about.show_parts([(BY_KEY[self._station].intro, "muted")])
        else:
            told = drafts.explanation(field.option)
            about.show_parts([(told["help"], "text"), (told["allowed"], "muted")])

    def help_text(self) -> str:
        field = field_of(self.focused)
        if field is None:
            return self.HELP_TEXT
        told = drafts.explanation(field.option)
        return "\n\n".join([field.option.key, *(text for text in told.values() if text)])

    def action_leave(self) -> None:
        rail = self.query_one("#rail")
        if rail.has_focus:
            super().action_leave()
        else:
            rail.focus()
