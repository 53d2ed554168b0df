"""The guided set-up: seven stations, each a form, with the consequence of every answer beside it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from textual import events, on
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Input

from engine.options import Value, text_of
from engine.plan.plan import Plan
from engine.settings import OPTIONS, Settings
from gptoss_tui import draft as drafts
from gptoss_tui import marks, unfinished
from gptoss_tui.bridge import Answer, Failure, attempt
from gptoss_tui.draft import Draft
from gptoss_tui.screens.asking import AskScreen
from gptoss_tui.screens.choose import ChooseScreen, room_for_items
from gptoss_tui.screens.reviewing import Reviewing
from gptoss_tui.stations import BY_KEY, STATIONS
from gptoss_tui.widgets.canvas import cut
from gptoss_tui.widgets.choices import Choices, Item
from gptoss_tui.widgets.consequence import Consequence
from gptoss_tui.widgets.field import Field, field_of
from gptoss_tui.widgets.form import Form
from gptoss_tui.widgets.length_field import LengthField
from gptoss_tui.widgets.note import Note
from gptoss_tui.widgets.review import Review

if TYPE_CHECKING:
    from engine.presets import Preset


class SetupScreen(Reviewing):
    """Every field edits the draft, and everything shown is derived from it."""

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
        Binding("f5", "layouts", "Other layouts", id="setup.layouts"),
        Binding("ctrl+z,u", "undo", "Undo", id="setup.undo"),
        Binding("ctrl+y", "redo", "Redo", show=False, id="setup.redo"),
        Binding("f8", "review", "Review", id="setup.review"),
        Binding("escape", "leave", "Back", show=False, id="screen.back"),
        Binding("q", "leave", "Leave", id="screen.leave"),
    ]

    def __init__(
        self, settings: Settings | None = None, *, preset: Preset | None = None, begun: Draft | None = None
    ) -> None:
        """Begin from a preset, from settings or with a draft; with none of them go on with what was not finished."""
        if preset is not None:
            begun = Draft(preset.settings, preset.name)
        elif settings is not None:
            begun = Draft(settings, "your settings")
        kept = unfinished.beside(Draft()) if begun is None else None
        self._goes_on = kept is not None
        """True when the draft on the disk is this one."""
        super().__init__(kept or begun or Draft())
        self._station = STATIONS[0].key
        self._seen = {self._station}
        self._offered = (False, False)
        self._shows_advanced = False
        self._other_layouts: dict[str, dict[str, Value]] = {}
        """The settings of each, by what it would change; empty until they were looked for."""
        # Kept here and not looked up: every key press needs them.
        self._panes: dict[str, Form | Review] = {}
        self._rail = Choices(id="rail")
        self._consequence = Consequence(id="consequence")
        self._about = Note(id="about")

    def compose_body(self) -> Iterable[Widget]:
        with Horizontal(id="setup"):
            yield self._rail
            yield Vertical(id="stations")
            with Vertical(id="aside"):
                yield self._consequence
                yield self._about

    def on_mount(self) -> None:
        self.cockpit.machine_found.subscribe(self, lambda _: self._machine_known())
        kept = None if self._goes_on else unfinished.beside(self.draft)
        if kept is None:
            self._begin()
        else:
            self._draw_rail()
            self.app.push_screen(unfinished.question(kept, self.draft), partial(self._decided, kept))

    def _decided(self, kept: Draft, choice: str | None) -> None:
        """Go on with one of the two set-ups."""
        if choice == unfinished.BOTH:
            saved = attempt(partial(unfinished.keep, kept, self.cockpit.services))
            if isinstance(saved, Failure):
                self.notify(f"{saved.message}\n{saved.hint}".strip(), title="It is not kept", severity="error")
                choice = None
            else:
                self.notify(f"Kept as {saved}.", title="Preset")
        if choice is None:
            self.call_later(super().action_leave)
            return
        if choice == unfinished.GO_ON:
            self.draft, self._goes_on = kept, True
        self._begin()

    def _begin(self) -> None:
        self.show_status((), place=f"set-up › {self.draft.name or 'the defaults'}")
        if self._goes_on:
            told = f"It started from {self.draft.name or 'the defaults'}. n on the first screen begins another one."
            self.notify(told, title="Going on with what was not finished")
        self._draw_rail()
        self._rail.focus()
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
        self.refresh_bindings()

    def _open_station(self) -> None:
        """Show the pane of the station, made when it is first wanted."""
        if self._station not in self._panes:
            self._panes[self._station] = self._make_pane()
            self.query_one("#stations").mount(self._panes[self._station])
        for key, pane in self._panes.items():
            pane.display = key == self._station
        for station in STATIONS:
            self.set_class(station.key == self._station, f"-at-{station.key}")
        self._show_own_facts()
        self._look()
        self.wants_alternatives = self._station == "layout"
        if self._station == "review":
            self.look_closer()
            self.show_review()
        else:
            self.look_closer_soon()

    def _make_pane(self) -> Form | Review:
        if self._station == "review":
            return Review(self.draft, id="form-review")
        keys = [station.key for station in STATIONS]
        following = STATIONS[keys.index(self._station) + 1]
        return Form(
            BY_KEY[self._station],
            self.draft,
            self.basis,
            next_title=following.title,
            shows_advanced=self._shows_advanced,
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
        marked = marks.marks(self.points, self._seen)
        items = [
            Item(
                station.key,
                (
                    (f"{marks.SHAPES[marked[station.key]]} ", marks.STYLES[marked[station.key]]),
                    (station.title, "text"),
                ),
            )
            for station in STATIONS
        ]
        self._rail.show(items, self._station)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Only what does something here is offered, in the line of keys, in the help and among the commands."""
        places = [station.key for station in STATIONS]
        if action == "station":
            direction = parameters[0]
            assert isinstance(direction, int)
            return 0 <= places.index(self._station) + direction < len(places)
        if action == "advanced":
            return any(option.advanced for option in BY_KEY[self._station].options)
        if action == "layouts":
            return self._station == "layout" and bool(self._other_layouts)
        if action == "review":
            return self._station != "review"
        if action == "undo":
            return self.draft.can_undo
        if action == "redo":
            return self.draft.can_redo
        return True

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
        """Show what undo has changed, at the station of the option `key`."""
        if key is None:
            return
        station = next(station for station in STATIONS if OPTIONS[key].table in station.tables)
        if station.key != self._station:
            self._go_to(station.key)
        if OPTIONS[key].advanced and not self._shows_advanced:
            self.action_advanced()
        for form in self._forms:
            form.refill()
        # From where letters are keys one goes to where they are too: the next `u` must not be typed into a field.
        if isinstance(self.focused, Input):
            self.call_after_refresh(lambda: self._form(station.key).focus_option(key))
        else:
            self._rail.focus()
        self._after_edit()

    def _keep_draft(self) -> None:
        self._goes_on = True  # from now on it is this draft that is kept
        services = self.cockpit.services
        problem = None if services.is_watching else attempt(partial(services.keep_draft, self.draft))
        if isinstance(problem, Failure):
            self.notify(f"The draft is not kept: {problem.message}", severity="warning")

    def _after_edit(self) -> None:
        self._keep_draft()
        for form in self._forms:
            form.show_what_matters()
        pane = self._panes.get(self._station)
        if self.cockpit.machine is None:
            self._look()
        elif isinstance(pane, Form):
            pane.look_ahead(self.basis)  # what follows from the plan as well is told when it is there
        self._replan()
        if (offered := (self.draft.can_undo, self.draft.can_redo)) != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def action_advanced(self) -> None:
        self._shows_advanced = not self._shows_advanced
        for form in self._forms:
            form.show_advanced(self._shows_advanced)

    def action_token(self) -> None:
        text = (
            "For downloading the model. It stays in the memory of this program and of the runs it starts: it is never "
            "written to a file or a log. HF_TOKEN in the environment does the same."
        )
        self.app.push_screen(
            AskScreen("Hugging Face token", text, act=self._use_token, is_secret=True), lambda _: self._look(again=True)
        )

    def _use_token(self, token: str) -> bool:
        self.cockpit.services.use_token(token)
        return True

    # --- the consequence -------------------------------------------------------------

    def _machine_known(self) -> None:
        self._show_own_facts()
        self._replan()

    def _show_own_facts(self) -> None:
        machine = self.cockpit.machine
        self._consequence.show_for(self._station, None if isinstance(machine, Failure) else machine)

    def _replan(self) -> None:
        self._draw_rail()
        if self.replan():
            self._consequence.expect()

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if not self.take_launch_answer(answer) and not self.take_planning_answer(answer):
            self.take_review_answer(answer)

    def planned(self) -> None:
        self._other_layouts = {}
        self._consequence.show(self.draft.settings, self.outcome, self.points)
        self._look()
        self.checked()

    def checked(self) -> None:
        self._draw_rail()
        self._consequence.show_points(self.points)
        if self._station == "review":
            self.show_review()

    def alternatives_found(self, plan: Plan) -> None:
        self._other_layouts = {other["why"]: other["settings"] for other in plan.estimate.get("alternatives") or ()}
        self._consequence.show_alternatives(plan)
        self.refresh_bindings()

    def action_layouts(self) -> None:
        """Take one of the layouts that the panel names."""
        room = room_for_items(self.app.size.width)
        items = [Item(told, cut(((told, "text"),), room)) for told in self._other_layouts]
        question = "Which layout? It is set by hand then; u takes it back."
        self.app.push_screen(ChooseScreen(question, items, items[0].key), self._take_layout)

    def _take_layout(self, told: str | None) -> None:
        if told is not None:
            self.draft.set_all({key: text_of(value) for key, value in self._other_layouts[told].items()})
            self.settings_taken()

    # --- the facts below the fields ---------------------------------------------------

    def _look(self, *, again: bool = False) -> None:
        pane = self._panes.get(self._station)
        if isinstance(pane, Form):
            pane.look(self.basis, again=again)

    @on(LengthField.Typed)
    def length_typed(self, event: LengthField.Typed) -> None:
        self.draft.length_text = event.text
        self._keep_draft()

    @on(LengthField.Converted)
    def length_converted(self, event: LengthField.Converted) -> None:
        self.draft.set_all({key: text_of(value) for key, value in event.values.items()})
        self.settings_taken()

    @on(LengthField.Followed)
    def length_followed(self, event: LengthField.Followed) -> None:
        self.draft.follow("training.iterations", event.iterations)
        self._form("training").refill()
        self._look()
        self._replan()

    def forget_draft(self) -> None:
        if self._goes_on:
            Draft.forget()

    def settings_taken(self) -> None:
        for form in self._forms:
            form.refill()
        self._after_edit()

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
            about = LengthField.HELP if self._is_at_length() else BY_KEY[self._station].intro
            self._about.show_parts([(about, "muted")])

    def _is_at_length(self) -> bool:
        within = self.focused.ancestors if self.focused is not None else []
        return any(isinstance(node, LengthField) for node in within)

    def help_text(self) -> str:
        field = field_of(self.focused)
        if field is None:
            return LengthField.HELP if self._is_at_length() else self.HELP_TEXT
        told = drafts.explanation(field.option)
        return "\n\n".join([field.option.key, *(text for text in told.values() if text)])

    def action_leave(self) -> None:
        if self.focused is self._rail:
            super().action_leave()
        else:
            self.set_focus(self._rail)
