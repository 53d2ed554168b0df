"""The guided set-up: seven stations, each a form, with the consequence of every answer beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from textual import events, on
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from engine import answers
from engine.plan.plan import Plan
from engine.settings import OPTIONS, Settings
from gptoss_tui import draft as drafts
from gptoss_tui.bridge import Answer, Failure, attempt
from gptoss_tui.draft import Draft
from gptoss_tui.panels import Basis
from gptoss_tui.review_text import ReviewPage, review_page
from gptoss_tui.screens.asking import AskScreen
from gptoss_tui.screens.launching import Launching, Offer
from gptoss_tui.stations import BY_KEY, SHAPES, STATIONS, STYLES, standings
from gptoss_tui.widgets.choices import Choices, Item
from gptoss_tui.widgets.consequence import Consequence
from gptoss_tui.widgets.field import Field, field_of
from gptoss_tui.widgets.form import Form
from gptoss_tui.widgets.length_field import LengthField
from gptoss_tui.widgets.note import Note
from gptoss_tui.widgets.review import Review

if TYPE_CHECKING:
    from engine.presets import Preset

ALTERNATIVES_DELAY_S = 0.3
"""Other layouts take the planner many times longer, so they wait until nobody types."""


class SetupScreen(Launching):
    """Owns the draft; every field edits it, and everything shown is derived from it."""

    CSS_PATH = "../styles/setup.tcss"
    PLACE = "set-up"
    HELP_TEXT = (
        "Walk through the stations in any order; nothing typed is lost. Arrows, Tab and Enter go from field to "
        "field, Page Up and Page Down from station to station, Escape back to the list of stations."
    )
    BINDINGS = [
        Binding("pagedown", "station(1)", "Next station", key_display="pgdn", priority=True, id="setup.next-station"),
        Binding("pageup", "station(-1)", "Station before", show=False, priority=True, id="setup.previous-station"),
        Binding("f3", "advanced", "Advanced", id="setup.advanced"),
        Binding("f4", "token", "Hugging Face token", show=False, id="setup.token"),
        Binding("ctrl+z,u", "undo", "Undo", id="setup.undo"),
        Binding("ctrl+y", "redo", "Redo", show=False, id="setup.redo"),
        Binding("f8", "review", "Review", id="setup.review"),
        Binding("escape", "leave", "Back", show=False, id="screen.back"),
        Binding("q", "leave", "Leave", id="screen.leave"),
    ]

    def __init__(
        self, settings: Settings | None = None, *, preset: Preset | None = None, draft: Draft | None = None
    ) -> None:
        super().__init__()
        if draft is None:
            base = preset.settings if preset is not None else settings
            draft = Draft(base, preset.name if preset is not None else "your settings" if settings is not None else "")
        self.draft = draft
        self._station = STATIONS[0].key
        self._seen = {self._station}
        self._outcome: Plan | Failure | None = None
        # Kept here and not looked up: every key press needs them.
        self._panes: dict[str, Form | Review] = {}
        self._rail = Choices(id="rail")
        self._consequence = Consequence(id="consequence")
        self._about = Note(id="about")
        self._alternatives_timer = self.set_timer(0, self._alternatives_now, pause=True)

    def compose_body(self) -> Iterable[Widget]:
        with Horizontal(id="setup"):
            yield self._rail
            yield Vertical(id="stations")
            with Vertical(id="aside"):
                yield self._consequence
                yield self._about

    def on_mount(self) -> None:
        self.show_status((), place=f"set-up › {self.draft.name or 'the defaults'}")
        self._draw_rail()
        self._rail.focus()
        self.cockpit.machine_found.subscribe(self, lambda _: self._machine_known())
        self.call_after_refresh(self._open_station)
        self._replan()

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
            self._rail.focus()

    def _go_to(self, key: str) -> None:
        self.draft.close_step()
        self._station = key
        self._seen.add(key)
        self._open_station()
        self._explain()
        self._draw_rail()

    def _open_station(self) -> None:
        """Show the pane of the station, made when it is first wanted."""
        if self._station not in self._panes:
            self._panes[self._station] = self._make_pane()
            self.query_one("#stations").mount(self._panes[self._station])
        for key, pane in self._panes.items():
            pane.display = key == self._station
        self._show_own_facts()
        self._look()
        self._alternatives_soon()
        if self._station == "review":
            self._review()

    def _make_pane(self) -> Form | Review:
        if self._station == "review":
            return Review(self.draft, id="form-review")
        keys = [station.key for station in STATIONS]
        following = STATIONS[keys.index(self._station) + 1]
        return Form(
            BY_KEY[self._station],
            self.draft,
            self._basis,
            next_title=following.title,
            shows_advanced=self.has_class("-show-advanced"),
        )

    @property
    def _forms(self) -> list[Form]:
        return [pane for pane in self._panes.values() if isinstance(pane, Form)]

    def _form(self, key: str) -> Form:
        form = self._panes[key]
        assert isinstance(form, Form)
        return form

    def _focus_station(self) -> None:
        def focus() -> None:
            self._panes[self._station].focus_first()

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
        self._rail.show(items, self._station)

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
        for form in self._forms:
            form.refill()
        self.call_after_refresh(lambda: self._form(station.key).focus_option(key))
        self._after_edit()

    def _after_edit(self) -> None:
        problem = attempt(self.draft.save)
        if isinstance(problem, Failure):
            self.notify(f"The draft is not kept: {problem.message}", severity="warning")
        for form in self._forms:
            form.show_what_matters()
        self._look()
        self._replan()

    def action_advanced(self) -> None:
        self.toggle_class("-show-advanced")
        if self.has_class("-show-advanced"):
            for form in self._forms:
                form.show_advanced()

    def action_token(self) -> None:
        text = (
            "For downloading the model. It stays in the memory of this program and of the runs it starts: it is never "
            "written to a file or a log. HF_TOKEN in the environment does the same."
        )
        self.app.push_screen(AskScreen("Hugging Face token", text, is_secret=True), self._token_given)

    def _token_given(self, token: str | None) -> None:
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
            self.notify("That is no token: it has a space or a letter that no token has.", severity="error")
        elif token is not None:
            self.cockpit.services.use_token(token)
            self._look(again=True)

    # --- the consequence -------------------------------------------------------------

    def _machine_known(self) -> None:
        self._show_own_facts()
        self._replan()

    def _show_own_facts(self) -> None:
        machine = self.cockpit.machine
        self._consequence.show_for(self._station, None if isinstance(machine, Failure) else machine)

    def _replan(self) -> None:
        self._draw_rail()
        machine = self.cockpit.machine
        if machine is not None and not isinstance(machine, Failure):
            self._consequence.expect()
            plan = partial(self.cockpit.services.plan, self.draft.settings, machine, with_alternatives=False)
            self.ask("plan", plan)
        elif isinstance(machine, Failure):
            self._planned_outcome(machine)

    def _alternatives_soon(self) -> None:
        """At the one station that shows them."""
        self._alternatives_timer.stop()
        if self._station == "layout" and isinstance(self._outcome, Plan):
            self._alternatives_timer = self.set_timer(ALTERNATIVES_DELAY_S, self._alternatives_now)

    def _alternatives_now(self) -> None:
        machine, settings, plan = self.cockpit.machine, self.draft.settings, self.cockpit.services.plan
        if machine is not None and not isinstance(machine, Failure):
            self.ask("alternatives", lambda: (settings, plan(settings, machine)))

    def _alternatives_found(self, answer: tuple[Settings, Plan] | Failure) -> None:
        if not isinstance(answer, Failure) and answer[0] is self.draft.settings:
            self._consequence.show_alternatives(answer[1])

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if self.take_launch_answer(answer):
            return
        if answer.name == "plan":
            self._planned_outcome(answer.value)
        elif answer.name == "alternatives":
            self._alternatives_found(answer.value)
        elif answer.name == "review":
            self._review_answered(answer.value)

    def _planned_outcome(self, outcome: Plan | Failure) -> None:
        self._outcome = outcome
        missing = tuple(answers.missing(self.draft.settings).values())
        self._consequence.show(self.draft.settings, outcome, missing)
        self._draw_rail()
        self._look()
        self._alternatives_soon()
        if self._station == "review":
            self._review()

    # --- the facts below the fields ---------------------------------------------------

    @property
    def _basis(self) -> Basis:
        machine, plan = self.cockpit.machine, self._outcome
        return Basis(
            services=self.cockpit.services,
            settings=self.draft.settings,
            plan=plan if isinstance(plan, Plan) else None,
            machine=None if isinstance(machine, Failure) else machine,
        )

    def _look(self, *, again: bool = False) -> None:
        pane = self._panes.get(self._station)
        if isinstance(pane, Form):
            pane.look(self._basis, again=again)

    @on(LengthField.Converted)
    def length_converted(self, event: LengthField.Converted) -> None:
        self.draft.set("training.iterations", str(event.iterations))
        self._form("training").refill()
        self._after_edit()

    # --- review ----------------------------------------------------------------------

    def _review(self) -> None:
        plan = self._outcome
        if isinstance(plan, Plan):
            self.ask("review", partial(self._review_page, plan))
        elif isinstance(plan, Failure):
            self._with_review(partial(Review.show_problem, parts=[(f"✗ {plan.message}", "bad"), (plan.hint, "text")]))

    def _review_page(self, plan: Plan) -> tuple[Plan, ReviewPage]:
        services, machine = self.cockpit.services, self.cockpit.machine
        assert machine is not None and not isinstance(machine, Failure)
        findings = services.check(self.draft.settings, plan, machine)
        return plan, review_page(self.draft, plan, findings, services.runs_root())

    def _review_answered(self, answer: tuple[Plan, ReviewPage] | Failure) -> None:
        if isinstance(answer, Failure):
            self._with_review(partial(Review.show_problem, parts=[(answer.message, "bad"), (answer.hint, "text")]))
        elif answer[0] is self._outcome:  # else the settings have changed meanwhile
            self._with_review(partial(Review.show, plan=answer[0], page=answer[1]))

    def _with_review(self, call: Callable[[Review], None]) -> None:
        """Call with the review as soon as it is there."""

        def call_all() -> None:
            review = self._panes.get("review")
            if isinstance(review, Review):
                call(review)

        self.call_after_refresh(call_all)

    @on(Review.LaunchWanted)
    def launch_wanted(self, event: Review.LaunchWanted) -> None:
        open_points = [*map(str, self.draft.problems.values()), *answers.missing(self.draft.settings).values()]
        if open_points:
            self.notify("\n".join(open_points[:4]), title="Still to be mended", severity="error")
        elif isinstance(self._outcome, Plan):
            self.offer(Offer(settings=self.draft.settings, title=f"Start {self._title}?", name=event.name))
        else:
            self.notify("There is no plan that works; see the consequence.", severity="error")

    @on(Review.RehearsalMade)
    def rehearsal_made(self, event: Review.RehearsalMade) -> None:
        made = event.rehearsal
        self.offer(Offer(settings=made.settings, title=f"Rehearse {self._title}?", notes=made.notes, is_rehearsal=True))

    @on(Review.Adopted)
    def adopted(self, event: Review.Adopted) -> None:
        self.notify(event.told)
        for form in self._forms:
            form.refill()
        self._after_edit()

    @property
    def _title(self) -> str:
        return self.draft.name or "this set-up"

    def forget_draft(self) -> None:
        Draft.forget()

    # --- help and leaving ------------------------------------------------------------

    @on(events.DescendantFocus)
    def focus_moved(self) -> None:
        self.draft.close_step()
        self._explain()

    def _explain(self) -> None:
        """Say what the focused field, or else the station, is about."""
        field = field_of(self.focused)
        if field is not None:
            told = drafts.explanation(field.option)
            self._about.show_parts([(told["help"], "text"), (told["allowed"], "muted")])
        else:
            within = self.focused.ancestors if self.focused is not None else []
            is_length = any(isinstance(node, LengthField) for node in within)
            self._about.show_parts([(LengthField.HELP if is_length else BY_KEY[self._station].intro, "muted")])

    def help_text(self) -> str:
        field = field_of(self.focused)
        if field is None:
            return self.HELP_TEXT
        told = drafts.explanation(field.option)
        return "\n\n".join([field.option.key, *(text for text in told.values() if text)])

    def action_leave(self) -> None:
        if self.focused is self._rail:
            super().action_leave()
        else:
            self.set_focus(self._rail)
