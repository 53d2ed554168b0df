"""What a fine-tuning taught: the base and the tuned model answer the same questions, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from textual import on
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input
from textual.worker import get_current_worker

from engine.run import asking
from engine.run.asking import Asked, Record, Wanted
from engine.run.directory import RunDirectory
from gptoss_tui import bridge
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.screens.base import CockpitScreen
from gptoss_tui.widgets.answers import Answers
from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.note import Note

if TYPE_CHECKING:
    from engine.run.asking import Asking

DRAW_S = 0.1
"""Words come faster than a slow line can show them one by one."""


class Told(Message, bubble=False):
    """What the process with the models said last."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record


class TryScreen(CockpitScreen):
    """Asks held-out chats first, then whatever a person types. Leaving it ends the process with the models."""

    CSS_PATH = "../styles/try_run.tcss"
    PLACE = "try"
    HELP_TEXT = (
        "The model before and after the fine-tuning answers the same questions. The first ones are chats that were "
        "held out from the training, with the answer that they hold; / asks one of your own. Each question loads the "
        "two models, one after the other: a large one takes a while, and needs the GPUs that training uses."
    )
    BINDINGS = [
        Binding("q", "leave", "Back", id="screen.leave"),
        Binding("slash", "type", "Ask", key_display="/", id="try.ask"),
        Binding("r", "held_out", "Held-out chats", id="try.held_out"),
    ]

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self.run = run
        self._asked: dict[int, Asked] = {}
        self._asking: Asking | None = None
        self._is_stale = False

    def compose_body(self) -> Iterable[Widget]:
        with VerticalScroll(id="body"):
            yield Answers(id="answers")
        yield Note(id="said")
        yield LineInput(placeholder="a question for both models; Enter asks", most=2000, id="question")

    def on_mount(self) -> None:
        self.show_status((), place=self.run.name)
        self.query_one("#body").focus()
        self.set_interval(DRAW_S, self._draw)
        self.ask("loss", lambda: asking.loss_sentence(asking.held_out_loss(self.run)))
        self.call_after_refresh(self.action_held_out)

    def on_unmount(self) -> None:
        if self._asking is not None:
            self._asking.end()

    # --- asking ----------------------------------------------------------------------

    def action_held_out(self) -> None:
        self._begin(Wanted())

    def action_type(self) -> None:
        box = self.query_one("#question", Input)
        box.display = True
        box.focus()

    @on(Input.Submitted)
    def typed(self, event: Input.Submitted) -> None:
        question = event.value.strip()
        self._hide_question()
        if question:
            self._begin(Wanted(prompts=(question,)))

    def action_leave(self) -> None:
        if self.query_one("#question").display:
            self._hide_question()
        else:
            super().action_leave()

    def _hide_question(self) -> None:
        box = self.query_one("#question", Input)
        box.value = ""
        box.display = False
        self.query_one("#body").focus()

    def _begin(self, wanted: Wanted) -> None:
        if self._asking is not None:
            self._asking.end()
        self._asked = {}
        self._is_stale = True
        self._say("starting …")
        self.run_worker(partial(self._listen, wanted), thread=True, exclusive=True, exit_on_error=False, group="asking")

    def _listen(self, wanted: Wanted) -> None:
        """Pass on what the models say, in a thread."""
        result = bridge.attempt(partial(self._follow, wanted))
        if not get_current_worker().is_cancelled:
            self.post_message(Answer("asking", result))

    def _follow(self, wanted: Wanted) -> None:
        worker = get_current_worker()
        process = self.cockpit.services.ask_models(self.run, wanted)
        self._asking = process
        for record in process:
            if worker.is_cancelled:
                process.end()
                return
            self.post_message(Told(record))

    # --- showing ---------------------------------------------------------------------

    @on(Told)
    def told(self, message: Told) -> None:
        record = message.record
        if "loading" in record:
            self._say(f"loading the {record['loading']} model: {record['path']}")
        elif "question" in record and ("text" in record or record["question"] in self._asked):
            if "piece" in record:
                self._say(f"the {record['model']} model answers …")
            asking.take(record, self._asked)
            self._is_stale = True

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if isinstance(answer.value, Failure):
            self.query_one("#said", Note).show(f"✗ {answer.value.message}", answer.value.hint, style="bad")
        elif answer.name == "loss":
            self.show_status(((answer.value, "muted"),))
        else:
            self._say("")

    def _say(self, sentence: str) -> None:
        self.query_one("#said", Note).show_parts([(sentence, "muted")])

    def _draw(self) -> None:
        if self._is_stale and not self.cockpit.is_congested:
            self._is_stale = False
            self.query_one(Answers).show(list(self._asked.values()))
