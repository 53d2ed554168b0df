"""A training that somebody else started, live: any Megatron log, event directory or offline file."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from textual import on
from textual.binding import Binding

from engine.monitor.diagnose import Diagnosis, diagnose_texts, read_logs
from engine.monitor.jobs import Job, Watched
from engine.monitor.notify import Notifier
from engine.run.state import State, Status
from gptoss_tui import foreign_job, words
from gptoss_tui.foreign_job import JobsFound
from gptoss_tui.screens.choose import ChooseScreen, room_for_items
from gptoss_tui.screens.job import JobScreen
from gptoss_tui.widgets.canvas import Row, fill
from gptoss_tui.widgets.choices import Item


class WatchScreen(JobScreen):
    """Follows the newest training of a place; another one is a key away."""

    PLACE = "watch"
    HELP_TEXT = (
        "This training was not started here: nothing you do changes it. What its files do not tell is not shown. "
        "Whether it runs is told from when they were last written. "
        "o shows the trainings in this place, the newest first.\n\n"
        + JobScreen.KEYS_TEXT
        + "When its logs end in an error, d says the likely cause and what to change."
    )
    BINDINGS = [Binding("o", "choose", "Trainings", id="watch.choose")]

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self._watched = watched
        self._jobs = watched.jobs
        self._job = self._jobs[0]
        self._notifier: Notifier | None = None

    def on_mount(self) -> None:
        if self._watched.notifier is not None:
            self._notifier = self._watched.notifier(partial(self.notify, severity="warning", markup=False))
        self._follow(self._job)

    def on_unmount(self) -> None:
        if self._notifier is not None:
            self._notifier.close()

    def _follow(self, job: Job) -> None:
        self._job, self.source = job, job.name
        self.forget()
        self._show_place()
        self.choose_log()
        self.run_worker(
            partial(foreign_job.follow, job, self._watched.places, self, self._notifier),
            thread=True,
            exclusive=True,
            exit_on_error=False,
            group="feed",
        )

    @on(JobsFound)
    def look(self, found: JobsFound) -> None:
        """Another look at the place: ranks that joined, trainings that began."""
        if found.followed.name != self.source:
            return  # of the one that was followed before
        if newer := len({job.name for job in found.jobs} - {job.name for job in self._jobs}):
            self.notify(f"{words.plural(newer, 'training')} more here; o shows them.", timeout=10)
        self._jobs, self._job = found.jobs, found.followed
        self._show_place()
        self.refresh_bindings()

    def _show_place(self) -> None:
        place = self._job.name
        if len(self._jobs) > 1 and (number := self._number()):
            place = f"{place} · {number} of {len(self._jobs)}"
        self.show_status((), place=place)
        self.tick()

    def _number(self) -> int:
        """Which of the trainings here is followed, from 1; 0 when it is gone."""
        first = self._job.files[0]
        return next((number for number, job in enumerate(self._jobs, 1) if first in job.files), 0)

    # --- what the training at hand is ---------------------------------------------------

    def logs(self) -> list[tuple[str, Path]]:
        # Megatron prints its iterations on the last rank.
        return [(path.name, path) for path in reversed(self._job.logs)]

    def rank_logs(self, shown: Path) -> tuple[Path, ...]:
        return self._job.logs

    def find_cause(self) -> Diagnosis | None:
        return diagnose_texts(read_logs(self._job.logs))

    def status_row(self, state: State) -> Row:
        if state.status is Status.STOPPED:
            return (("○", "warning"), (" quiet", "warning"))
        return super().status_row(state)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "choose":
            return len(self._jobs) > 1
        return super().check_action(action, parameters)

    # --- other trainings ------------------------------------------------------------------

    def action_choose(self) -> None:
        now, width = self.cockpit.clock(), room_for_items(self.app.size.width)
        items = [_item(job, width, now) for job in self._jobs]
        self.app.push_screen(
            ChooseScreen("Trainings here, the newest first", items, items[max(0, self._number() - 1)].key), self._chosen
        )

    def _chosen(self, name: str | None) -> None:
        job = next((job for job in self._jobs if job.name == name), None)
        if job is not None and self._job.files[0] not in job.files:
            self._follow(job)


def _item(job: Job, width: int, now: float) -> Item:
    right: Row = ((f"{job.kind:>12}", "muted"), (f"{words.age(max(0.0, now - job.changed)):>14} ", "muted"))
    name = words.shorten(job.name, max(8, width - 30))
    return Item(job.name, fill(((name, "text"),), right, width))
