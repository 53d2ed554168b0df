"""What every screen of a training shares: charts, facts, GPUs, log, and how they are filled from a feed."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from textual import on
from textual.binding import Binding
from textual.containers import Container, Horizontal, Vertical
from textual.notifications import SeverityLevel
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input

from engine.monitor.diagnose import UNKNOWN, Diagnosis
from engine.monitor.series import Series
from engine.options import Value
from engine.plan.plan import Plan
from engine.run.state import State, Status
from engine.settings import Settings
from gptoss_tui import feed, words
from gptoss_tui.beside_plan import levels
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.feed import FeedUpdate, Record
from gptoss_tui.history import History, number
from gptoss_tui.log_file import readable
from gptoss_tui.metric_names import chart_metrics, drawable, name_of
from gptoss_tui.screens.base import CockpitScreen
from gptoss_tui.screens.confirm import Choice, ConfirmScreen
from gptoss_tui.widgets.canvas import Row
from gptoss_tui.widgets.chart import Chart, Picture
from gptoss_tui.widgets.events import Events
from gptoss_tui.widgets.facts import Facts
from gptoss_tui.widgets.gpus import Gpus
from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.log_view import LogView
from gptoss_tui.widgets.progress import Progress
from gptoss_tui.widgets.run_facts import run_facts
from gptoss_tui.widgets.steps import StepList, StepStrip, status_spans

HUGE_COLUMNS = 240
"""From here on there is room for four charts."""
TICK_S = 1.0
JOINED_S = 0.75
"""After a pause of so long the numbers and the log are drawn together with what is new: one frame, and not two."""
AWAITED_S = 0.25
"""How much longer they wait for it after it came."""
GPU_S = 2.0
SILENT_S = 5.0
"""A directory that has not answered for so long is on a share whose server is down."""
FRESH_S = 60.0
"""Alerts of so long ago are still news when a screen opens."""
_TOASTS: dict[str, SeverityLevel] = {"warning": "warning", "error": "error"}
_CHARTS = ("chart", "second-chart", "third-chart", "fourth-chart")
"""How many of them are seen depends on the terminal (styles/monitor.tcss)."""


class JobScreen(CockpitScreen):
    """Draws what `FeedUpdate`s tell; whose training it is, and what may be done to it, the screens above know."""

    CSS_PATH = "../styles/monitor.tcss"
    ALLOW_IN_MAXIMIZED_VIEW = "TitleBar, KeyHints, #search"
    KEYS_TEXT = (
        "In a chart, left and right move a cursor along the values; + and - zoom around it, 0 shows the whole run "
        "again. The bright line is smoothed; the dim band behind it holds every raw value. Dashes stand where the "
        "plan, or what NVIDIA published for the same GPUs, expects the values. "
        "In the log, up and down scroll, left and right show the rest of long lines, f follows the end, e jumps to "
        "the first error, v leaves only warnings or errors, w wraps, y copies what is shown, x saves it as a file. "
        "[ and ] go through the logs; a puts those of all ranks into one, in the order of their times.\n\n"
    )
    BINDINGS = [
        Binding("q", "leave", "Detach", id="screen.leave"),
        Binding("c", "next_metric", "Chart", id="monitor.chart"),
        Binding("l", "zoom_log", "Log", id="monitor.log"),
        Binding("slash", "search", "Search", key_display="/", id="monitor.search"),
        Binding("m", "zoom", "Maximise", id="monitor.maximise"),
        Binding("d", "diagnose", "Why?", id="monitor.diagnose"),
        Binding("a", "all_ranks", "All ranks", show=False, id="monitor.all-ranks"),
        Binding("right_square_bracket", "next_log(1)", "Next log", show=False, key_display="]", id="monitor.next-log"),
        Binding(
            "left_square_bracket", "next_log(-1)", "Log before", show=False, key_display="[", id="monitor.previous-log"
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.state: State | None = None
        self.settings: Settings | None = None
        self.plan: Plan | None = None
        self.history = History()
        self.source = ""
        """Which training the feed's batches are of, where there are several."""
        self._metric = "loss"
        self._log: Path | None = None
        """The log that a person turned to; without one the most telling is shown."""
        self._is_merged = False
        self._samples_wanted = False
        self._bell = False
        self._drew = self._ticked = 0.0
        """When a batch was drawn, and when the numbers were."""
        self._next_tick: Timer | None = None
        self.pulse = feed.Pulse()
        self._checkpoint: tuple[int, int] | None = None
        """Iteration and bytes of the newest checkpoint."""

    # --- what the training at hand is ---------------------------------------------------

    def logs(self) -> list[tuple[str, Path]]:
        """The logs worth reading now, the most telling first, as (title, path)."""
        raise NotImplementedError

    def rank_logs(self, shown: Path) -> tuple[Path, ...]:
        """The logs of all ranks that belong together with the one that is shown."""
        raise NotImplementedError

    def find_cause(self) -> Diagnosis | None:
        """Why it failed. Called in a thread."""
        raise NotImplementedError

    def status_row(self, state: State) -> Row:
        """Its state in the title line."""
        return status_spans(state.status)

    def apply_cause(self, edit: dict[str, Value]) -> None:
        """Change the settings as proposed and go on, where that can be done."""

    @property
    def can_resume(self) -> bool:
        return False

    # --- the screen -------------------------------------------------------------------

    def compose_body(self) -> Iterable[Widget]:
        charset = self.cockpit.charset
        yield StepStrip(id="strip")
        yield Progress(id="progress")
        with Horizontal(id="upper"):
            with Container(id="charts"):
                for place, metric in zip(_CHARTS, self._chart_metrics(), strict=True):
                    yield Chart(self._picture(metric), charset=charset, id=place)
            with Vertical(id="side"):
                yield Facts(id="facts")
                yield StepList(id="steps")
                yield Gpus(id="gpus")
                yield Events(id="events")
        yield LogView(id="log")
        yield LineInput(placeholder="regular expression; Enter finds, n goes on", id="search", most=1000)

    def on_mount(self) -> None:
        self.query_one("#log").focus()
        self.ask("bell", feed.wants_bell)
        self.tick()
        self.set_interval(GPU_S, self._sample_gpus)
        self.cockpit.machine_found.subscribe(self, lambda _: self._look_at_machine())
        self._look_at_machine()

    # --- what is new -----------------------------------------------------------------

    @on(FeedUpdate)
    def take(self, update: FeedUpdate) -> None:
        batch = update.batch
        if batch.source != self.source:
            return  # of a training that was followed before
        if batch.history is not None:
            batch.history.iterations = batch.history.iterations or self.history.iterations
            self.history = batch.history
        elif batch.restarted:
            self.history.forget_metrics()
        self.history.add_metrics(batch.metrics)
        if batch.history is None:
            self.history.add_events(batch.events)
        self._tell_alerts(batch.events)
        if batch.state is not None:
            self.take_state(batch.state)
        if batch.problem:
            self.notify(batch.problem, title="The state of the run", severity="error")
        self._draw(batch)

    def take_state(self, state: State) -> None:
        before = self.state.status if self.state is not None else None
        self.state = state
        if before is None:
            self._look_at_machine()
        if before is not state.status:
            self.refresh_bindings()

    def forget(self) -> None:
        """Show nothing of the training that was followed until now."""
        self.state, self.history, self._log, self._checkpoint = None, History(), None, None
        self._draw_charts()
        for panel in (StepStrip, StepList, Progress, Facts, Events):
            self.query_one(panel).paint([])

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        value = answer.value
        if isinstance(value, Failure):
            # A run that was copied in part may lack its plan; the rest is still worth watching.
            if answer.name not in ("gpus", "plan", "bell", "checkpoint"):
                self.notify(f"{value.message}\n{value.hint}".strip(), severity="error", timeout=10)
        elif answer.name == "gpus":
            self.query_one(Gpus).show(value)
        elif answer.name == "bell":
            self._bell = value
        elif answer.name == "cause":
            self._show_cause(value)
        elif answer.name == "export":
            self.notify(value)
        else:
            self.take_answer(answer.name, value)

    def take_answer(self, name: str, value: object) -> None:
        """An answer to a question of the screen above."""

    def _tell_alerts(self, events: list[Record]) -> None:
        """Show what its supervisor has just noticed; older alerts stand in the list of events."""
        for event in events:
            age = self.cockpit.clock() - number(event.get("t"))
            if event.get("kind") != "alert" or age > FRESH_S:
                continue
            text = f"{event.get('evidence', '')}\nnext: {event.get('next_step', '')}"
            severity = _TOASTS.get(str(event.get("severity")), "information")
            self.notify(text, title=str(event.get("message", "")), severity=severity, timeout=20, markup=False)
            if self._bell:
                self.app.bell()

    def _draw(self, batch: feed.Batch) -> None:
        """Draw what a batch changed; slow facts wait for the next tick."""
        if self.cockpit.is_congested:
            return
        if batch.metrics or batch.history:
            self._draw_charts()
        now, before = time.monotonic(), self._drew
        self._drew = now
        is_urgent = batch.state or batch.events or batch.history
        if is_urgent or now - before >= JOINED_S or now - self._ticked >= JOINED_S:
            self.tick()
            self._tick_in(TICK_S + AWAITED_S)

    def _draw_charts(self) -> None:
        for place, metric in zip(_CHARTS, self._chart_metrics(), strict=True):
            chart = self.query_one(f"#{place}", Chart)
            if chart.display:
                chart.show(self._picture(metric))

    def _tick_in(self, seconds: float) -> None:
        if self._next_tick is not None:
            self._next_tick.stop()
        self._next_tick = self.set_timer(seconds, self.tick)

    def tick(self) -> None:
        """Draw everything that is told in numbers, and the log."""
        self._ticked = time.monotonic()
        self._tick_in(TICK_S)
        now = self.cockpit.clock()
        state, history = self.state, self.history
        if self.cockpit.is_congested:
            return
        if state is not None:
            self.choose_log()  # a rank's log may come without any other news
        self.query_one(LogView).poll()
        if (silence := self.pulse.silence_s) > SILENT_S:
            self.show_status(((f"its directory does not answer, {words.duration(silence)}", "warning"),))
        if state is None:
            return
        steps = history.steps(state)
        if state.status is Status.PENDING:
            elapsed = None
        else:
            elapsed = (state.ended or now) - state.created
        self.query_one(StepStrip).show(steps, now)
        self.query_one(StepList).show(steps, now)
        self.query_one(Progress).show(state, history, now)
        facts = run_facts(state, history, self.settings, self.plan, self._checkpoint, now)
        self.query_one(Facts).show("training", facts)
        self.query_one(Events).show(history.events)
        if silence <= SILENT_S:
            self.show_status((*self.status_row(state), (f"  {words.duration(elapsed)}", "muted")))

    def on_resize(self) -> None:
        # Beside -wide, which a further breakpoint would take the place of.
        self.set_class(self.app.size.width >= HUGE_COLUMNS, "-huge")
        self.call_after_refresh(self.draw_all)

    def draw_all(self) -> None:
        """After a change of everything: another size, other settings."""
        if self.is_attached:
            self._draw_charts()
            self.tick()

    # --- charts ----------------------------------------------------------------------

    def _chart_metrics(self) -> list[str]:
        return chart_metrics(self._metric, self.history.series, len(_CHARTS))

    def _picture(self, metric: str) -> Picture:
        name = name_of(metric)
        return Picture(
            title=name.title,
            unit=name.unit,
            series=self.history.series.get(metric) or _NOTHING,
            marks=self.history.series.get("validation_loss") if metric == "loss" else None,
            marks_title="validation",
            levels=levels(metric, self.plan),
            iterations=self.history.iterations or float("inf"),
        )

    def action_next_metric(self) -> None:
        metrics = drawable(list(self.history.series))
        place = metrics.index(self._metric) if self._metric in metrics else -1
        self._metric = metrics[(place + 1) % len(metrics)]
        self._draw_charts()

    # --- log -------------------------------------------------------------------------

    def choose_log(self) -> None:
        """Show the log that fits the training as it is now."""
        self.show_log()

    def show_log(self, turn: int = 0) -> None:
        """Show the log that is so many places behind the one at hand, or all of the step at work in one."""
        logs = self.logs()
        view = self.query_one(LogView)
        if not logs:
            view.show((), "no log here")
            return
        title, path = logs[(self._place_in(logs) + turn) % len(logs)]
        if turn:
            self._log = path
        paths: tuple[Path, ...] = (path,)
        if self._is_merged and len(together := self.rank_logs(path)) > 1:
            paths, title = together, " · ".join([*title.split(" · ")[:-1][:1], f"{len(together)} ranks"])
        if paths != view.paths:
            view.show(paths, title)

    def _place_in(self, logs: list[tuple[str, Path]]) -> int:
        """Where the log at hand stands; ranks join, and one that failed goes to the front."""
        return next((place for place, (_, path) in enumerate(logs) if path == self._log), 0)

    def action_next_log(self, direction: int) -> None:
        self._is_merged = False
        self.show_log(direction)

    def action_all_ranks(self) -> None:
        self._is_merged = not self._is_merged
        logs = self.logs()
        if self._is_merged and (not logs or len(self.rank_logs(logs[self._place_in(logs)][1])) < 2):
            self._is_merged = False
            self.notify("There is no other rank's log beside this one.")
        self.show_log()

    def action_search(self) -> None:
        box = self.query_one("#search", Input)
        box.display = True
        box.focus()

    @on(Input.Submitted, "#search")
    def search(self, event: Input.Submitted) -> None:
        log = self.query_one(LogView)
        if problem := log.set_search(event.value):
            self.notify(problem, severity="error")
            return
        event.input.display = False
        log.focus()
        self.refresh_bindings()

    @on(LogView.NotFound)
    def nothing_found(self, event: LogView.NotFound) -> None:
        self.notify(f"No (further) match of {event.pattern}; search another log with [ and ].", markup=False)

    @on(LogView.Copied)
    def copied(self, event: LogView.Copied) -> None:
        self.notify(f"{words.plural(event.lines, 'line')} copied, if your terminal takes OSC 52.")

    @on(LogView.ExportWanted)
    def export_log(self, event: LogView.ExportWanted) -> None:
        self.ask("export", partial(self.cockpit.services.export_log, self.job_name, event.paths, event.level))

    @property
    def job_name(self) -> str:
        """What a file that is saved from here is called after."""
        return self.state.name if self.state is not None else "log"

    # --- layout ----------------------------------------------------------------------

    def action_zoom(self) -> None:
        if self.maximized is not None:
            self.minimize()
        elif self.focused is not None and self.focused.id != "search":
            self.maximize(self.focused, container=False)

    def action_zoom_log(self) -> None:
        log = self.query_one(LogView)
        is_zoomed = self.maximized is log
        self.minimize()
        if not is_zoomed:
            log.focus()
            self.maximize(log, container=False)

    def action_leave(self) -> None:
        box = self.query_one("#search", Input)
        if box.display:
            box.display = False
            self.query_one(LogView).focus()
        elif self.maximized is not None:
            self.minimize()
        else:
            super().action_leave()

    # --- why it failed -----------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "diagnose":
            return self.state is not None and self.state.status is Status.FAILED
        return True

    def action_diagnose(self) -> None:
        self.ask("cause", self.find_cause)

    def _show_cause(self, cause: Diagnosis | None) -> None:
        if cause is None:
            self.notify("Nothing in its logs is known as a cause; e jumps to the first error of a log.")
            return
        edit = dict(cause.edit)
        lines = [cause.why, "", f"Next: {cause.next_step}"]
        if cause.key == UNKNOWN:
            lines.append("The key e jumps to the first error of a log.")
        if edit and self.settings is not None:
            lines += ["", "Proposed change:"]
            lines += [f"  {key}: {self.settings.value(key)} → {value}" for key, value in edit.items()]
        choices = [Choice("no", "Leave it" if self.can_resume else "Close")]
        if edit and self.can_resume:
            choices.append(Choice("apply", "Change and resume"))
        elif cause.is_curable and self.can_resume:
            choices.append(Choice("apply", "Resume as it is"))
        text = "\n".join(readable(line) for line in lines)
        question = readable(cause.sentence)
        screen = ConfirmScreen(question, text, tuple(choices))
        self.app.push_screen(screen, lambda choice: self.apply_cause(edit) if choice == "apply" else None)

    # --- GPUs ------------------------------------------------------------------------

    def _look_at_machine(self) -> None:
        machine = self.cockpit.machine
        if machine is None or isinstance(machine, Failure):
            return
        # Those of a machine that is only described, or of another host's run, cannot be read here.
        is_here = not machine.is_described and (self.state is None or self.state.host == platform.node())
        self._samples_wanted = is_here and bool(machine.gpus)
        self.set_class(self._samples_wanted, "-has-gpus")
        if self._samples_wanted:
            self.query_one(Gpus).styles.height = min(9, len(machine.gpus) + 2)

    def _sample_gpus(self) -> None:
        if self._samples_wanted and not self.is_asking("gpus"):
            self.ask("gpus", self.cockpit.services.sample_gpus)


_NOTHING = Series()
"""Stands for a metric that has no value yet."""
