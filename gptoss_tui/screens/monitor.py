"""One run, live: what it is doing, how well, how long it will take. Leaving it ends nothing."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

from textual.binding import Binding

from engine.finetune_settings import GOALS
from engine.monitor.diagnose import Diagnosis
from engine.options import Value
from engine.patience import NoAnswer, Patient
from engine.run.directory import RunDirectory
from engine.run.state import State, Status
from gptoss_tui import feed
from gptoss_tui.log_file import DISK_S
from gptoss_tui.screens.confirm import Choice, ConfirmScreen
from gptoss_tui.screens.job import JobScreen

_CAN_RESUME = (Status.STOPPED, Status.FAILED, Status.LOST)


class MonitorScreen(JobScreen):
    """Reads the run's directory through the feed, so it works on a run of any terminal, or a copied one."""

    PLACE = "monitor"
    HELP_TEXT = (
        "The run goes on whatever you do here, even when this program is closed: q only leaves the screen. "
        "s asks for a stop after the next iteration, with a checkpoint; K ends it at once.\n\n"
        + JobScreen.KEYS_TEXT
        + "When a run has failed, d says why, shows what to change, and resumes with the change when you agree."
    )
    BINDINGS = [
        Binding("s", "stop", "Stop", id="monitor.stop"),
        Binding("K", "kill", "Kill", id="monitor.kill"),
        Binding("r", "resume", "Resume", id="monitor.resume"),
        Binding("t", "try_run", "Try it", id="monitor.try"),
    ]

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self.run = run
        self._disk = Patient(DISK_S)
        self._logs: list[tuple[str, Path]] = []
        self._ranks: dict[Path, tuple[Path, ...]] = {}
        self._log_attempt = -1

    def on_unmount(self) -> None:
        self._disk.close()

    def on_mount(self) -> None:
        self.show_status((), place=self.run.name)
        self.run_worker(
            partial(feed.follow, self.run, self, self.pulse),
            thread=True,
            exclusive=True,
            exit_on_error=False,
            group="feed",
        )
        self.ask("settings", partial(feed.settings_of, self.run))
        self.ask("plan", partial(feed.plan_of, self.run))

    # --- what the training at hand is ---------------------------------------------------

    @property
    def job_name(self) -> str:
        return self.run.name

    @property
    def can_resume(self) -> bool:
        return not self.cockpit.services.is_watching

    def logs(self) -> list[tuple[str, Path]]:
        with suppress(NoAnswer):
            self._logs = self._disk.call(partial(feed.log_files, self.run, self.state))
        return self._logs

    def rank_logs(self, shown: Path) -> tuple[Path, ...]:
        with suppress(NoAnswer):
            self._ranks = {shown: self._disk.call(partial(feed.rank_logs, shown))}
        return self._ranks.get(shown, ())

    def find_cause(self) -> Diagnosis | None:
        return self.cockpit.services.cause_of(self.run)

    def apply_cause(self, edit: dict[str, Value]) -> None:
        self.ask("resume", partial(self.cockpit.services.resume, self.run, edit or None))
        self.ask("settings", partial(feed.settings_of, self.run))

    def take_state(self, state: State) -> None:
        iteration = state.checkpoint
        if iteration is not None and (self._checkpoint is None or self._checkpoint[0] != iteration):
            self.ask("checkpoint", partial(feed.checkpoint_size, self.run, iteration))
        super().take_state(state)

    def take_answer(self, name: str, value: object) -> None:
        if name == "settings":
            self.settings = value  # type: ignore[assignment]
            assert self.settings is not None
            self.history.iterations = self.history.iterations or self.settings.training.iterations
            self.refresh_bindings()
            self.draw_all()
        elif name == "plan":
            self.plan = value  # type: ignore[assignment]
            self.draw_all()
        elif name == "checkpoint":
            self._checkpoint = value  # type: ignore[assignment]

    def choose_log(self) -> None:
        """Follow the step at work; a log that a person chose stays until the next attempt."""
        assert self.state is not None
        if self.state.attempt != self._log_attempt:
            self._log_attempt, self._log = self.state.attempt, None
        super().choose_log()

    # --- what may be done to it ----------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        status = self.state.status if self.state is not None else Status.PENDING
        if action in ("stop", "kill", "resume") and self.cockpit.services.is_watching:
            return False
        if action in ("stop", "kill"):
            return status.is_live
        if action == "resume":
            return status in _CAN_RESUME
        if action == "try_run":
            has_learnt = self.settings is not None and self.settings.training.goal in GOALS
            return has_learnt and status is Status.FINISHED and not self.cockpit.services.is_watching
        return super().check_action(action, parameters)

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
