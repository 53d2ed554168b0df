"""The options of one station as fields; arrows, Tab and Enter walk through them."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.message import Message
from textual.reactive import Reactive
from textual.widget import Widget
from textual.widgets import Button, Static

from engine import answers
from engine.options import Option
from gptoss_tui.draft import Draft
from gptoss_tui.panels import PANELS, Basis
from gptoss_tui.stations import Station
from gptoss_tui.widgets.field import Field
from gptoss_tui.widgets.length_field import LengthField
from gptoss_tui.widgets.station_panel import StationPanel


class Form(VerticalScroll, can_focus=False):
    """Fields for a station, those of the draft's problems marked. Posts `Left` at its two ends."""

    BINDINGS = [
        # With priority they are carried out before the next key is handed to the field that has the focus then: over
        # a slow line an arrow and the letters after it arrive together.
        Binding("up,k", "walk(-1)", "Field above", show=False, priority=True, id="form.up"),
        Binding("down,j", "walk(1)", "Field below", show=False, priority=True, id="form.down"),
    ]

    # Fields that grow ask for one layout; Textual's own makes a second one of it. A scroll bar still brings one.
    virtual_size: Reactive[Size] = Reactive(Size(0, 0), repaint=False)

    class Left(Message):
        """The person walked out of the form: -1 at its beginning, 1 at its end."""

        def __init__(self, direction: int) -> None:
            super().__init__()
            self.direction = direction

    def __init__(
        self, station: Station, draft: Draft, basis: Basis, *, next_title: str, shows_advanced: bool = False
    ) -> None:
        super().__init__(id=f"form-{station.key}")
        self.station = station
        self._draft = draft
        self._basis = basis
        self._next_title = next_title
        self._has_fields = False
        self._shows_advanced = shows_advanced
        self._wanted_focus: str | None = None

    def compose(self) -> ComposeResult:
        yield Static(self.station.intro, classes="intro", markup=False)
        is_open = self._open
        for option in self.station.options:
            # Advanced fields are made when they are first asked for, or need the person.
            if not option.advanced or self._shows_advanced or option.key in is_open:
                yield self._make_field(option, is_open)
            if option.key == "training.iterations":
                yield LengthField(self._draft.length_text)
        if panel := PANELS.get(self.station.key):
            yield StationPanel(panel)
        yield Button(f"Next: {self._next_title}", compact=True, classes="next")

    @property
    def fields(self) -> list[Field]:
        """The fields in view, in order."""
        return [field for field in self._all_fields if field.display]

    @property
    def _all_fields(self) -> list[Field]:
        # A query would match selectors at every key press.
        return [child for child in self.children if isinstance(child, Field)]

    def show_advanced(self, is_wanted: bool) -> None:
        """Show or hide the fields that few need."""
        self._shows_advanced = is_wanted
        self.show_what_matters()

    @property
    def _open(self) -> set[str]:
        """Options that need the person: they are in view whatever else is hidden."""
        return {*self._draft.problems, *answers.missing(self._draft.settings)}

    def _make_wanted(self, is_open: set[str]) -> None:
        made = {field.option.key: field for field in self._all_fields}
        if not (self._shows_advanced or is_open) or len(made) == len(self.station.options):
            return
        before: Widget = self.query_one(".intro")
        for option in self.station.options:
            field = made.get(option.key)
            if field is None and (self._shows_advanced or option.key in is_open):
                field = self._make_field(option, is_open)
                self.mount(field, after=before)
            if field is not None:
                before = field
            if option.key == "training.iterations":
                before = self.query_one(LengthField)

    def _make_field(self, option: Option, is_open: set[str]) -> Field:
        field = Field(option, self._draft.text(option.key), self._draft.problems.get(option.key))
        self._judge(field, is_open)
        return field

    def _judge(self, field: Field, is_open: set[str]) -> None:
        """Hide a field that changes nothing under the other answers; show one that is still to be answered."""
        # Not by classes: Textual would match every rule of the stylesheets again.
        option = field.option
        is_offered = not option.advanced or self._shows_advanced
        field.display = option.key in is_open or (is_offered and answers.matters(option.key, self._draft.settings))

    def look(self, basis: Basis, *, again: bool = False) -> None:
        """Look up what the station tells beside its fields."""
        self._basis = basis
        for child in self.children:
            if isinstance(child, StationPanel):
                child.look(basis, again=again)
            elif isinstance(child, LengthField):
                child.look(basis)

    def look_ahead(self, basis: Basis) -> None:
        """Look up what the station will tell when the plan is there."""
        for child in self.children:
            if isinstance(child, StationPanel):
                child.look_ahead(basis)

    def show_what_matters(self) -> None:
        """Hide the fields that change nothing under the other answers, and show those that are needed now."""
        is_open = self._open
        if self._has_fields:
            self._make_wanted(is_open)
        for field in self._all_fields:
            self._judge(field, is_open)

    def on_mount(self) -> None:
        self._has_fields = True
        self.look(self._basis)
        if self._wanted_focus is not None:
            self.focus_option(self._wanted_focus)

    def focus_first(self) -> None:
        """Give the first field the focus."""
        self.focus_option("")

    def focus_option(self, key: str) -> None:
        """Give the field of an option the focus, the first one when it is not here."""
        if not self._has_fields:
            self._wanted_focus = key
            return
        field = next((field for field in self._all_fields if field.option.key == key), None)
        self.screen.set_focus(field.control if field is not None else self._stops[0])

    def refill(self) -> None:
        """Show the texts and problems that the draft holds now."""
        for field in self._all_fields:
            field.show_text(self._draft.text(field.option.key))
            field.show_problem(self._draft.problems.get(field.option.key))

    def action_walk(self, direction: int) -> None:
        stops = self._stops
        focused = self.screen.focused
        place = next((i for i, stop in enumerate(stops) if stop is focused), -1) + direction
        if 0 <= place < len(stops):
            # Not `focus()`, which waits its turn.
            self.screen.set_focus(stops[place])
        else:
            self.post_message(self.Left(direction))

    @on(Field.Accepted)
    @on(LengthField.Accepted)
    def accepted(self, event: Message) -> None:
        event.stop()
        self.action_walk(1)

    @on(Button.Pressed)
    def next_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Left(1))

    @property
    def _stops(self) -> list[Widget]:
        shown = [child for child in self.children if isinstance(child, (Field, LengthField)) and child.display]
        return [*(field.control for field in shown), self.query_one(Button)]
