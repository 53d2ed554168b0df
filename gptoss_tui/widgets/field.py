"""One option as a row of a form: its name, a control of the right kind, its unit, and what is wrong."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input

from engine.options import Option, Problem
from gptoss_tui.draft import LONGEST_TEXT
from gptoss_tui.widgets.alternatives import Alternatives
from gptoss_tui.widgets.canvas import Canvas
from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.note import Note


class Field(Vertical):
    """Posts `Changed` for every edit and `Accepted` when Enter asks for the next field."""

    class Changed(Message):
        """Something was typed or chosen."""

        def __init__(self, field: Field, text: str) -> None:
            super().__init__()
            self.field = field
            self.text = text

    class Accepted(Message):
        """The person is done with this field."""

        def __init__(self, field: Field) -> None:
            super().__init__()
            self.field = field

    def __init__(self, option: Option, text: str, problem: Problem | None = None) -> None:
        super().__init__(classes="-advanced" if option.advanced else "")
        self.option = option
        self._text = text
        self._problem = problem
        self._label = Canvas(classes="field-label")
        self._unit = Canvas(classes="field-unit")
        self._note = Note()
        self.control = self._make_control()

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield self._label
            yield self.control
            if isinstance(self.control, Input) and self.option.unit:
                yield self._unit
        yield self._note

    def on_mount(self) -> None:
        self._unit.paint([((f" {self.option.unit}", "muted"),)])
        self.show_problem(self._problem)

    def show_text(self, text: str) -> None:
        """Put `text` into the control without telling anybody: it came from the draft."""
        self._text = text
        with self.prevent(Input.Changed):
            self.control.value = text

    def show_problem(self, problem: Problem | None) -> None:
        """Say what is wrong, or that nothing is."""
        self._problem = problem
        self.set_class(problem is not None, "-wrong")
        name = self.option.name.replace("_", " ")
        mark, style = ("✗ ", "bad") if problem is not None else ("  ", "text")
        self._label.paint([((mark, "bad"), (name, style))])
        if problem is not None:
            hint = f": {problem.hint}" if problem.hint else ""
            self._note.show_parts([(f"{problem.message}{hint}", "bad")])

    @on(Input.Changed)
    def typed(self, event: Input.Changed) -> None:
        event.stop()
        self._tell(event.value)

    @on(LineInput.Refused)
    def paste_refused(self, event: LineInput.Refused) -> None:
        event.stop()
        self.show_problem(Problem(key=self.option.key, message=event.why, hint="paste one line"))

    @on(Alternatives.Changed)
    def chosen(self, event: Alternatives.Changed) -> None:
        event.stop()
        self._tell(event.value)

    @on(Input.Submitted)
    @on(Alternatives.Accepted)
    def accepted(self, event: Message) -> None:
        event.stop()
        self.post_message(self.Accepted(self))

    def _tell(self, text: str) -> None:
        # An Input tells of its first text too.
        if text != self._text:
            self._text = text
            self.post_message(self.Changed(self, text))

    def _make_control(self) -> Input | Alternatives:
        words = ("yes", "no") if self.option.kind is bool else self.option.choices
        if words:
            return Alternatives(words, self._text)
        return LineInput(self._text, most=LONGEST_TEXT, placeholder=_placeholder(self.option))


def _placeholder(option: Option) -> str:
    return "" if option.default else {"path": "a path"}.get(option.name, "empty: chosen for you")


def field_of(widget: Widget | None) -> Field | None:
    """The field that a focused control belongs to."""
    return next((node for node in widget.ancestors_with_self if isinstance(node, Field)), None) if widget else None
