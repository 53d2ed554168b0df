"""One run, live: what it is doing, how well, how long it will take. Leaving it ends nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from textual import on
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.widgets import Input

from engine.run.directory import RunDirectory
from engine.run.state import State, Status
from engine.settings import Settings
from gptoss_tui import feed, words
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.feed import FeedUpdate
from gptoss_tui.history import History
from gptoss_tui.metric_names import drawable, name_of
from gptoss_tui.plot.series import Series
from gptoss_tui.screens.base import CockpitScreen
from gptoss_tui.screens.confirm import Choice, ConfirmScreen
from gptoss_tui.widgets.chart import Chart, Picture
from gptoss_tui.widgets.events import Events
from gptoss_tui.widgets.facts import Facts
from gptoss_tui.widgets.gpus import Gpus
from gptoss_tui.widgets.line_input import LineInput
from gptoss_tui.widgets.log_view import LogView
from gptoss_tui.widgets.progress import Progress
from gptoss_tui.widgets.run_facts import run_facts
from gptoss_tui.widgets.steps import StepList, StepStrip, status_spans

TICK_S = 1.0
GPU_S = 2.0
_CAN_RESUME = (Status.STOPPED, Status.FAILED, Status.LOST)


class MonitorScreen(CockpitScreen):
    """Reads the run's directory through the feed, so it works on a run of any terminal, or a copied one."""

    CSS_PATH = "../styles/monitor.tcss"
    PLACE = "monitor"
    ALLOW_IN_MAXIMIZED_VIEW = "TitleBar, KeyHints, #search"
    HELP_TEXT = (
        "The run goes on whatever you do here, even when this program is closed: q only leaves the screen. "
        "s asks for a stop after the next iteration, with a checkpoint; k ends it at once.\n\n"
        "In a chart, left and right move a cursor along the values. The bright line is smoothed; the dim band "
        "behind it holds every raw value. In the log, up and down scroll, left and right show the rest of long "
        "lines, f follows the end."
    )
    BINDINGS = [
        Binding("q", "leave", "Detach"),
        Binding("c", "next_metric", "Chart"),
        Binding("l", "zoom_log", "Log"),
        Binding("slash", "search", "Search", key_display="/"),
        Binding("m", "zoom", "Maximise"),
        Binding("s", "stop", "Stop"),
        Binding("k", "kill", "Kill"),
        Binding("r", "resume", "Resume"),
        Binding("right_square_bracket", "next_log(1)", "Next log", show=False, key_display="]"),
        Binding("left_square_bracket", "next_log(-1)", "Log before", show=False, key_display="["),
    ]

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self.run = run
        self.state: State | None = None
        self.settings: Settings | None = None
        self.history = History()
        self._metric = "loss"
        self._log = 0
        self._log_attempt = -1
        self._log_is_chosen = False
        self._samples_wanted = False

    def compose_body(self) -> Iterable[Widget]:
        charset = self.cockpit.charset
        yield StepStrip(id="strip")
        yield Progress(id="progress")
        with Horizontal(id="upper"):
            with Vertical(id="charts"):
                yield Chart(self._picture("loss"), charset=charset, id="chart")
                yield Chart(self._picture("tokens_per_s"), charset=charset, id="second-chart")
            with Vertical(id="side"):
                yield Facts(id="facts")
                yield StepList(id="steps")
                yield Gpus(id="gpus")
                yield Events(id="events")
        yield LogView(id="log")
        yield LineInput(placeholder="regular expression; Enter finds, n goes on", id="search", most=1000)

    def on_mount(self) -> None:
        self.show_status((), place=self.run.name)
        self.query_one("#log").focus()
        self.run_worker(
            partial(feed.follow, self.run, self),
            thread=True,
            exclusive=True,
            exit_on_error=False,
            group="feed",
        )
        self.ask("settings", partial(feed.settings_of, self.run))
        self.set_interval(TICK_S, self.tick)
        self.set_interval(GPU_S, self._sample_gpus)
        self.cockpit.machine_found.subscribe(self, lambda _: self._look_at_machine())
        self._look_at_machine()

    # --- what is new -----------------------------------------------------------------

    @on(FeedUpdate)
    def take(self, update: FeedUpdate) -> None:
        batch = update.batch
        if batch.restarted:
            self.history.forget_metrics()
        self.history.add_metrics(batch.metrics)
        self.history.add_events(batch.events)
        if batch.state is not None:
            was_live = self.state is not None and self.state.status.is_live
            self.state = batch.state
            if was_live != batch.state.status.is_live:
                self.refresh_bindings()
            self._choose_log()
        if batch.problem:
            self.notify(batch.problem, title="The state of the run", severity="error")
        if not batch.is_history:
            self._draw(batch)

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        if answer.name == "gpus":
            if not isinstance(answer.value, Failure):
                self.query_one(Gpus).show(answer.value)
        elif isinstance(answer.value, Failure):
            self.notify(f"{answer.value.message}\n{answer.value.hint}".strip(), severity="error", timeout=10)
        elif answer.name == "settings":
            self.settings = answer.value
            self.history.iterations = self.settings.training.iterations
            self._draw_all()

    def _draw(self, batch: feed.Batch) -> None:
        """Draw what a batch changed; slow facts wait for the next tick."""
        if self.cockpit.is_congested:
            return
        if batch.metrics:
            self._draw_charts()
        if batch.state or batch.events:
            self.tick()

    def _draw_charts(self) -> None:
        for selector, metric in (("#chart", self._metric), ("#second-chart", self._second_metric)):
            self.query_one(selector, Chart).show(self._picture(metric))

    def tick(self) -> None:
        """Draw everything that is told in numbers."""
        now = self.cockpit.clock()
        state, history = self.state, self.history
        if state is None or self.cockpit.is_congested:
            return
        steps = history.steps(state)
        if state.status is Status.PENDING:
            elapsed = None
        else:
            elapsed = (state.ended or now) - state.created
        self.query_one(StepStrip).show(steps, now)
        self.query_one(StepList).show(steps, now)
        self.query_one(Progress).show(state, history, now)
        self.query_one(Facts).show("training", run_facts(state, history, self.settings))
        self.query_one(Events).show(history.events)
        self.show_status((*status_spans(state.status), (f"  {words.duration(elapsed)}", "muted")))

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw_all)

    def _draw_all(self) -> None:
        if self.is_attached:
            self._draw_charts()
            self.tick()

    # --- charts ----------------------------------------------------------------------

    @property
    def _second_metric(self) -> str:
        return "tokens_per_s" if self._metric != "tokens_per_s" else "loss"

    def _picture(self, metric: str) -> Picture:
        name = name_of(metric)
        return Picture(
            title=name.title,
            unit=name.unit,
            series=self.history.series.get(metric) or _NOTHING,
            marks=self.history.series.get("validation_loss") if metric == "loss" else None,
            marks_title="validation",
            iterations=self.history.iterations or float("inf"),
        )

    def action_next_metric(self) -> None:
        metrics = drawable(list(self.history.series))
        place = metrics.index(self._metric) if self._metric in metrics else -1
        self._metric = metrics[(place + 1) % len(metrics)]
        self._draw_charts()

    # --- log -------------------------------------------------------------------------

    def _choose_log(self) -> None:
        """Follow the step at work; a log that a person chose stays until the next attempt."""
        assert self.state is not None
        if self.state.attempt != self._log_attempt:
            self._log_attempt, self._log = self.state.attempt, 0
            self._log_is_chosen = False
        if not self._log_is_chosen:
            self._show_log(0)

    def _show_log(self, index: int) -> None:
        logs: list[tuple[str, Path]] = feed.log_files(self.run, self.state)
        self._log = index % len(logs)
        title, path = logs[self._log]
        log = self.query_one(LogView)
        if path != log.path:
            log.show(path, title)

    def action_next_log(self, direction: int) -> None:
        self._log_is_chosen = True
        self._show_log(self._log + direction)

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
        self.notify(f"No (further) match of {event.pattern!r}; search another log with [ and ].")

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

    # --- the run ---------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        status = self.state.status if self.state is not None else Status.PENDING
        if action in ("stop", "kill"):
            return status.is_live
        if action == "resume":
            return status in _CAN_RESUME
        return True

    def action_stop(self) -> None:
        text = (
            "The iteration at work is finished and a checkpoint saved; then every process ends. "
            "Nothing is lost, and r resumes the run later."
        )
        choices = (Choice("no", "Let it run"), Choice("stop", "Stop with a checkpoint"))
        self.app.push_screen(ConfirmScreen(f"Stop {self.run.name}?", text, choices), self._stop_decided)

    def _stop_decided(self, choice: str | None) -> None:
        if choice == "stop":
            self.ask("stop", partial(self.cockpit.services.stop, self.run))

    def action_kill(self) -> None:
        saved = self.state.checkpoint if self.state is not None else None
        lost = (
            f"What came after the checkpoint of iteration {saved} is lost." if saved else "There is no checkpoint yet."
        )
        text = f"Every process of the run is ended at once, without saving. {lost}"
        choices = (Choice("no", "Let it run"), Choice("kill", "Kill it", is_harmful=True))
        self.app.push_screen(ConfirmScreen(f"Kill {self.run.name}?", text, choices), self._kill_decided)

    def _kill_decided(self, choice: str | None) -> None:
        if choice == "kill":
            self.ask("kill", partial(self.cockpit.services.kill, self.run))

    def action_resume(self) -> None:
        self.ask("resume", partial(self.cockpit.services.resume, self.run))

    # --- GPUs ------------------------------------------------------------------------

    def _look_at_machine(self) -> None:
        machine = self.cockpit.machine
        has_gpus = machine is not None and not isinstance(machine, Failure) and bool(machine.gpus)
        self._samples_wanted = has_gpus
        self.set_class(has_gpus, "-has-gpus")
        if has_gpus:
            assert machine is not None and not isinstance(machine, Failure)
            self.query_one(Gpus).styles.height = min(9, len(machine.gpus) + 1)

    def _sample_gpus(self) -> None:
        if self._samples_wanted:
            self.ask("gpus", self.cockpit.services.sample_gpus)


_NOTHING = Series()
"""Stands for a metric that has no value yet."""
