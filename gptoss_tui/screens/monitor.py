"""One run, live: what it is doing, how well, how long it will take. Leaving it ends nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from textual import on
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.notifications import SeverityLevel
from textual.widget import Widget
from textual.widgets import Input

from engine.finetune_settings import GOALS
from engine.monitor.diagnose import Diagnosis
from engine.monitor.series import Series
from engine.options import Value
from engine.plan.plan import Plan
from engine.run.directory import RunDirectory
from engine.run.state import State, Status
from engine.settings import Settings
from gptoss_tui import feed, words
from gptoss_tui.beside_plan import levels
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.feed import FeedUpdate, Record
from gptoss_tui.history import History, number
from gptoss_tui.log_file import readable
from gptoss_tui.metric_names import drawable, name_of
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
FRESH_S = 60.0
"""Alerts of so long ago are still news when a screen opens."""
_TOASTS: dict[str, SeverityLevel] = {"warning": "warning", "error": "error"}
_CAN_RESUME = (Status.STOPPED, Status.FAILED, Status.LOST)


class MonitorScreen(CockpitScreen):
    """Reads the run's directory through the feed, so it works on a run of any terminal, or a copied one."""

    CSS_PATH = "../styles/monitor.tcss"
    PLACE = "monitor"
    ALLOW_IN_MAXIMIZED_VIEW = "TitleBar, KeyHints, #search"
    HELP_TEXT = (
        "The run goes on whatever you do here, even when this program is closed: q only leaves the screen. "
        "s asks for a stop after the next iteration, with a checkpoint; K ends it at once.\n\n"
        "In a chart, left and right move a cursor along the values; + and - zoom around it, 0 shows the whole run "
        "again. The bright line is smoothed; the dim band behind it holds every raw value. Dashes stand where the "
        "plan, or what NVIDIA published for the same GPUs, expects the values. "
        "In the log, up and down scroll, left and right show the rest of long lines, f follows the end, e jumps to "
        "the first error, v leaves only warnings or errors, w wraps, y copies what is shown, x saves it as a file.\n\n"
        "When a run has failed, d says why, shows what to change, and resumes with the change when you agree."
    )
    BINDINGS = [
        Binding("q", "leave", "Detach", id="screen.leave"),
        Binding("c", "next_metric", "Chart", id="monitor.chart"),
        Binding("l", "zoom_log", "Log", id="monitor.log"),
        Binding("slash", "search", "Search", key_display="/", id="monitor.search"),
        Binding("m", "zoom", "Maximise", id="monitor.maximise"),
        Binding("s", "stop", "Stop", id="monitor.stop"),
        Binding("K", "kill", "Kill", id="monitor.kill"),
        Binding("d", "diagnose", "Why?", id="monitor.diagnose"),
        Binding("r", "resume", "Resume", id="monitor.resume"),
        Binding("t", "try_run", "Try it", id="monitor.try"),
        Binding("right_square_bracket", "next_log(1)", "Next log", show=False, key_display="]", id="monitor.next-log"),
        Binding(
            "left_square_bracket", "next_log(-1)", "Log before", show=False, key_display="[", id="monitor.previous-log"
        ),
    ]

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self.run = run
        self.state: State | None = None
        self.settings: Settings | None = None
        self.plan: Plan | None = None
        self.history = History()
        self._metric = "loss"
        self._log = 0
        self._log_attempt = -1
        self._log_is_chosen = False
        self._samples_wanted = False
        self._bell = False
        self._checkpoint: tuple[int, int] | None = None
        """Iteration and bytes of the newest checkpoint."""

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
        self.ask("plan", partial(feed.plan_of, self.run))
        self.ask("bell", feed.wants_bell)
        self.set_interval(TICK_S, self.tick)
        self.set_interval(GPU_S, self._sample_gpus)
        self.cockpit.machine_found.subscribe(self, lambda _: self._look_at_machine())
        self._look_at_machine()

    # --- what is new -----------------------------------------------------------------

    @on(FeedUpdate)
    def take(self, update: FeedUpdate) -> None:
        batch = update.batch
        if batch.history is not None:
            batch.history.iterations = self.history.iterations
            self.history = batch.history
        elif batch.restarted:
            self.history.forget_metrics()
        self.history.add_metrics(batch.metrics)
        if batch.history is None:
            self.history.add_events(batch.events)
        self._tell_alerts(batch.events)
        if batch.state is not None:
            self._measure_checkpoint(batch.state.checkpoint)
            was_live = self.state is not None and self.state.status.is_live
            self.state = batch.state
            if was_live != batch.state.status.is_live:
                self.refresh_bindings()
            self._choose_log()
        if batch.problem:
            self.notify(batch.problem, title="The state of the run", severity="error")
        self._draw(batch)

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        value = answer.value
        if isinstance(value, Failure):
            # A run that was copied in part may lack its plan; the rest is still worth watching.
            if answer.name not in ("gpus", "plan", "bell", "checkpoint"):
                self.notify(f"{value.message}\n{value.hint}".strip(), severity="error", timeout=10)
        elif answer.name == "gpus":
            self.query_one(Gpus).show(value)
        elif answer.name == "settings":
            self.settings = value
            self.history.iterations = value.training.iterations
            self.refresh_bindings()
            self._draw_all()
        elif answer.name == "plan":
            self.plan = value
            self._draw_all()
        elif answer.name == "bell":
            self._bell = value
        elif answer.name == "checkpoint":
            self._checkpoint = value
        elif answer.name == "cause":
            self._show_cause(value)
        elif answer.name == "export":
            self.notify(value)

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

    def _measure_checkpoint(self, iteration: int | None) -> None:
        if iteration is not None and (self._checkpoint is None or self._checkpoint[0] != iteration):
            self.ask("checkpoint", partial(feed.checkpoint_size, self.run, iteration))

    def _draw(self, batch: feed.Batch) -> None:
        """Draw what a batch changed; slow facts wait for the next tick."""
        if self.cockpit.is_congested:
            return
        if batch.metrics or batch.history:
            self._draw_charts()
        if batch.state or batch.events or batch.history:
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
        facts = run_facts(state, history, self.settings, self.plan, self._checkpoint, now)
        self.query_one(Facts).show("training", facts)
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
            levels=levels(metric, self.plan),
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
        self.notify(f"No (further) match of {event.pattern}; search another log with [ and ].", markup=False)

    @on(LogView.Copied)
    def copied(self, event: LogView.Copied) -> None:
        self.notify(f"{words.plural(event.lines, 'line')} copied, if your terminal takes OSC 52.")

    @on(LogView.ExportWanted)
    def export_log(self, event: LogView.ExportWanted) -> None:
        self.ask("export", partial(feed.export_log, self.run, event.path, event.level))

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
        if action in ("stop", "kill", "resume") and self.cockpit.services.is_watching:
            return False
        if action in ("stop", "kill"):
            return status.is_live
        if action == "resume":
            return status in _CAN_RESUME
        if action == "diagnose":
            return status is Status.FAILED
        if action == "try_run":
            has_learnt = self.settings is not None and self.settings.training.goal in GOALS
            return has_learnt and status is Status.FINISHED and not self.cockpit.services.is_watching
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

    def action_try_run(self) -> None:
        from gptoss_tui.screens.try_run import TryScreen

        self.app.push_screen(TryScreen(self.run))

    def action_diagnose(self) -> None:
        self.ask("cause", partial(self.cockpit.services.cause_of, self.run))

    def _show_cause(self, cause: Diagnosis | None) -> None:
        if cause is None:
            self.notify("Nothing in its logs is known as a cause; e jumps to the first error of a log.")
            return
        edit = dict(cause.edit)
        lines = [cause.why, "", f"Next: {cause.next_step}"]
        if edit and self.settings is not None:
            lines += ["", "Proposed change:"]
            lines += [f"  {key}: {self.settings.value(key)} → {value}" for key, value in edit.items()]
        choices = [Choice("no", "Leave it")]
        if edit:
            choices.append(Choice("apply", "Change and resume"))
        elif cause.is_curable:
            choices.append(Choice("apply", "Resume as it is"))
        text = "\n".join(readable(line.encode()) for line in lines)
        question = readable(cause.sentence.encode())
        screen = ConfirmScreen(question, text, tuple(choices))
        self.app.push_screen(screen, lambda choice: self._cause_decided(choice, edit))

    def _cause_decided(self, choice: str | None, edit: dict[str, Value]) -> None:
        if choice == "apply":
            self.ask("resume", partial(self.cockpit.services.resume, self.run, edit or None))
            self.ask("settings", partial(feed.settings_of, self.run))

    # --- GPUs ------------------------------------------------------------------------

    def _look_at_machine(self) -> None:
        machine = self.cockpit.machine
        has_gpus = machine is not None and not isinstance(machine, Failure) and bool(machine.gpus)
        self._samples_wanted = has_gpus
        self.set_class(has_gpus, "-has-gpus")
        if has_gpus:
            assert machine is not None and not isinstance(machine, Failure)
            self.query_one(Gpus).styles.height = min(9, len(machine.gpus) + 2)

    def _sample_gpus(self) -> None:
        if self._samples_wanted:
            self.ask("gpus", self.cockpit.services.sample_gpus)


_NOTHING = Series()
"""Stands for a metric that has no value yet."""
