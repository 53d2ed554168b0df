"""The length of the training in the unit a person thinks in, and in all the others while it is typed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input

from engine import length
from engine.errors import SettingsError
from engine.finetune_settings import GOALS
from engine.length import Pace
from engine.options import Value
from engine.settings import Settings
from gptoss_tui import bridge, words
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.draft import LONGEST_TEXT
from gptoss_tui.panels import Basis, data_of
from gptoss_tui.widgets.canvas import Canvas
from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.note import Note


class LengthField(Vertical):
    """A second way to the iterations: what is typed here becomes them at once."""

    HELP = (
        "The length in tokens, samples, epochs, hours or days; it becomes iterations at once. Epochs need data "
        "that can be counted here (of chats the prepare step counts them exactly), hours a plan that predicts a speed."
    )

    class Typed(Message):
        """The text is another one, whether it can be converted or not."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Converted(Message):
        """What was typed, as settings."""

        def __init__(self, values: Mapping[str, Value]) -> None:
            super().__init__()
            self.values = values

    class Followed(Message):
        """The epochs that were asked for come to so many iterations now."""

        def __init__(self, iterations: int) -> None:
            super().__init__()
            self.iterations = iterations

    class Accepted(Message):
        """The person is done with this field."""

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self._text = text
        self._followed: int | None = None
        self._basis: Basis | None = None
        self._pace: Pace | None = None
        self._data: object = None
        self._data_tokens: float | None = None
        self._label = Canvas(classes="field-label")
        self._note = Note()
        self.control = LineInput(text, placeholder="2B tokens, 3 epochs, 10 h", most=LONGEST_TEXT, id="length")

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield self._label
            yield self.control
        yield self._note

    def on_mount(self) -> None:
        self._show()

    def look(self, basis: Basis) -> None:
        """Tell the length for the batch, the plan and the data of now."""
        self._basis = basis
        settings = basis.settings
        # On GPUs several chats share a sample; on the CPU each is padded to one.
        is_packed = basis.plan.device == "gpu" if basis.plan is not None else settings.machine.device != "cpu"
        data = (data_of(basis), is_packed or settings.training.sequence_length)
        if data != self._data:
            self._data, self._data_tokens = data, None
            bridge.ask_from(self, "tokens", partial(basis.services.data_tokens, settings, is_packed=is_packed))
        estimate = basis.plan.estimate if basis.plan is not None else None
        self._pace = length.pace_of(settings, estimate, self._data_tokens, is_packed=is_packed)
        self._follow(settings)
        self._show()

    def _follow(self, settings: Settings) -> None:
        """Tell of other iterations when the epochs, the batch or the data changed; not of iterations that are typed."""
        assert self._pace is not None
        iterations = length.followed(settings, self._pace)
        if iterations is not None and iterations != self._followed:
            self.post_message(self.Followed(iterations))
        self._followed = iterations

    @on(Answer)
    def counted(self, answer: Answer) -> None:
        # Data that cannot be read is told about at its own station.
        self._data_tokens = None if isinstance(answer.value, Failure) else answer.value
        if self._basis is not None:
            self.look(self._basis)

    @on(Input.Changed)
    def typed(self, event: Input.Changed) -> None:
        event.stop()
        # An Input tells of its first text too: what was converted once need not come to the same again.
        if event.value != self._text:
            self._text = event.value
            self.post_message(self.Typed(event.value))
            self._convert()

    @on(Input.Submitted)
    def accepted(self, event: Input.Submitted) -> None:
        event.stop()
        self.post_message(self.Accepted())

    def _convert(self) -> None:
        text = self.control.value.strip()
        # A number without a unit is one that is still being typed.
        if self._basis is None or self._pace is None or not text or text.replace(".", "").isdigit():
            self._show()
            return
        try:
            values = length.as_settings(length.parse(text), self._basis.settings, self._pace)
        except SettingsError as error:
            self._show(f"{error.message}: {error.hint}")
            return
        self.post_message(self.Converted(values))

    def _show(self, problem: str = "") -> None:
        self._label.paint([(("✗ " if problem else "  ", "bad"), ("in another unit", "bad" if problem else "text"))])
        if problem:
            self._note.show_parts([(problem, "bad")])
        elif self._pace is not None and self._basis is not None:
            settings = self._basis.settings
            told = length.describe(length.length_of(settings.training.iterations, self._pace))
            parts = [(f"= {told.partition(' = ')[2]}", "muted")]
            if settings.training.goal in GOALS and settings.finetune.epochs:
                epochs = f"{settings.finetune.epochs:g} epochs"
                told = f"{epochs}, about {words.plural(self._followed, 'iteration')}" if self._followed else epochs
                parts.append((f"{told}: the prepare step counts the chats and sets the iterations", "muted"))
            self._note.show_parts(parts)
