"""One option as a row of a form: its name, a control of the right kind, its unit, and what is wrong."""

from __future__ import annotations

from textual import events, on
from textual.app import ComposeResult
from textual.geometry import NULL_OFFSET, NULL_SPACING, Region, Size
from textual.layout import ArrangeResult, Layout, WidgetPlacement
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input

from engine.options import Option, Problem
from gptoss_tui.draft import LONGEST_TEXT
from gptoss_tui.widgets.alternatives import Alternatives
from gptoss_tui.widgets.canvas import Canvas, Row, fill
from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.note import rows_of

LABEL_CELLS, UNIT_CELLS = 23, 12
_MARGIN = "  "


class _InTheRow(Layout):
    """The control in the first row, between the label and the unit that its field paints."""

    name = "in-the-row"

    def arrange(self, parent: Widget, children: list[Widget], size: Size, greedy: bool = True) -> ArrangeResult:
        assert isinstance(parent, Field)
        cells = max(0, size.width - LABEL_CELLS - (UNIT_CELLS if parent.unit else 0))
        region = Region(LABEL_CELLS, 0, cells, 1)
        return [WidgetPlacement(region, NULL_OFFSET, NULL_SPACING, child) for child in children]


_IN_THE_ROW = _InTheRow()


class Field(Canvas):
    """Posts `Changed` for every edit and `Accepted` when Enter asks for the next field.

    It paints all but its control itself, and is as high as it says: a form of widgets in widgets, each measured for
    every new layout, was too slow to type in.
    """

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
        super().__init__()
        self.option = option
        self.problem = problem
        """What is wrong with the text, as it is told below it."""
        self._text = text
        self.control = self._make_control()
        self.unit = f" {option.unit}" if option.unit and isinstance(self.control, Input) else ""

    @property
    def layout(self) -> Layout:
        return _IN_THE_ROW

    def compose(self) -> ComposeResult:
        yield self.control

    def show_text(self, text: str) -> None:
        """Put `text` into the control without telling anybody: it came from the draft."""
        self._text = text
        with self.prevent(Input.Changed):
            self.control.value = text

    def show_problem(self, problem: Problem | None) -> None:
        """Say what is wrong, or that nothing is."""
        if problem != self.problem:
            self.problem = problem
            self.redraw()

    def redraw(self) -> None:
        if width := self.content_size.width:
            rows = [self._named(width), *self._told(width)]
            self.paint(rows)
            self.styles.height = len(rows)

    def _named(self, width: int) -> Row:
        mark, style = (_MARGIN, "text") if self.problem is None else ("✗ ", "bad")
        if self.has_focus_within:
            style = "strong" if style == "text" else style
        unit: Row = ((f"{self.unit:<{UNIT_CELLS}}", "muted"),) if self.unit else ()
        return fill(((mark, "bad"), (self.option.name.replace("_", " "), style)), unit, width)

    def _told(self, width: int) -> list[Row]:
        if self.problem is None:
            return []
        hint = f": {self.problem.hint}" if self.problem.hint else ""
        rows = rows_of(f"{self.problem.message}{hint}", "bad", width - len(_MARGIN))
        return [((_MARGIN, ""), *row) for row in rows]

    @on(events.DescendantFocus)
    @on(events.DescendantBlur)
    def focus_moved(self) -> None:
        self.redraw()

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
