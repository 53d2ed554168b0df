"""The options of one station as fields; arrows, Tab and Enter walk through them."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Button, Static

from engine.options import Option
from gptoss_tui.draft import Draft
from gptoss_tui.stations import Station
from gptoss_tui.widgets.field import Field


class Form(VerticalScroll, can_focus=False):
    """Fields for a station, those of the draft's problems marked. Posts `Left` at its two ends."""

    BINDINGS = [
        Binding("up", "walk(-1)", "Field above", show=False),
        Binding("down", "walk(1)", "Field below", show=False),
    ]

    class Left(Message):
        """The person walked out of the form: -1 at its beginning, 1 at its end."""

        def __init__(self, direction: int) -> None:
            super().__init__()
            self.direction = direction

    def __init__(self, station: Station, draft: Draft, *, next_title: str, shows_advanced: bool = False) -> None:
        super().__init__(id=f"form-{station.key}")
        self.station = station
        self._draft = draft
        self._next_title = next_title
        self._has_fields = False
        self._shows_advanced = shows_advanced
        self._wanted_focus: str | None = None

    def compose(self) -> ComposeResult:
        yield Static(self.station.intro, classes="intro", markup=False)
        for option in self.station.options:
            # Advanced fields are made when they are first asked for, unless something is wrong there.
            if not option.advanced or self._shows_advanced or option.key in self._draft.problems:
                yield self._make_field(option)
        yield Button(f"Next: {self._next_title}", compact=True, classes="next")

    @property
    def fields(self) -> list[Field]:
        """The fields in view, in order."""
        return [field for field in self.query(Field) if field.display]

    def show_advanced(self) -> None:
        """Make the fields that are still missing; a class of the screen shows and hides them."""
        self._shows_advanced = True
        made = {field.option.key: field for field in self.query(Field)}
        before: Widget = self.query_one(".intro")
        for option in self.station.options:
            field = made.get(option.key)
            if field is None:
                field = self._make_field(option)
                self.mount(field, after=before)
            before = field

    def _make_field(self, option: Option) -> Field:
        return Field(option, self._draft.text(option.key), self._draft.problems.get(option.key))

    def on_mount(self) -> None:
        self._has_fields = True
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
        field = next((field for field in self.query(Field) if field.option.key == key), None)
        (field.control if field is not None else self._stops[0]).focus()

    def refill(self) -> None:
        """Show the texts and problems that the draft holds now."""
        for field in self.query(Field):
            field.show_text(self._draft.text(field.option.key))
            field.show_problem(self._draft.problems.get(field.option.key))

    def action_walk(self, direction: int) -> None:
        stops = self._stops
        focused = self.screen.focused
        place = next((i for i, stop in enumerate(stops) if stop is focused), -1) + direction
        if 0 <= place < len(stops):
            stops[place].focus()
        else:
            self.post_message(self.Left(direction))

    @on(Field.Accepted)
    def accepted(self, event: Field.Accepted) -> None:
        event.stop()
        self.action_walk(1)

    @on(Button.Pressed)
    def next_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Left(1))

    @property
    def _stops(self) -> list[Button | Static]:
        controls = [field.control for field in self.fields]
        return [*controls, self.query_one(Button)]  # type: ignore[list-item]
