"""The verb `watch`: any Megatron job on a screen, or as lines, with alerts and, at the end, a diagnosis."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from engine import paths, settings_file
from engine.cli import output
from engine.errors import ExitCode, NotFoundError, SettingsError
from engine.monitor.alert import Alert, Facts, facts_of, number
from engine.monitor.alerts import AlertWatch
from engine.monitor.diagnose import Diagnosis, Text, diagnose_texts, read_logs
from engine.monitor.jobs import Watched, find_jobs
from engine.monitor.metrics import Record
from engine.monitor.notify import Notifier, load_rules
from engine.monitor.sources import JsonFiles, Pipe, Source, find_logs, follow, is_event_file, open_source
from engine.paths import expanded
from engine.run import directory
from engine.run.cause import cause_of
from engine.run.directory import RunDirectory
from engine.run.state import Status

_LINE_EVERY_S = 2.0


def watch(arguments: argparse.Namespace) -> int:
    """Follow a job on a screen, or as lines until it ends or is interrupted; with --no-follow, what is there."""
    run = _find_run(arguments.places)
    if _wants_screen(arguments):
        if run is not None:
            return int(arguments.show_screen("monitor", run))
        notifier = partial(_make_notifier, arguments) if arguments.notify else None
        watched = Watched(places=arguments.places, jobs=find_jobs(arguments.places), notifier=notifier)
        return int(arguments.show_screen("watch", watched=watched))
    source: Source = JsonFiles([run.events, run.metrics]) if run else open_source(arguments.places)
    watching = _Watching(arguments, run)
    try:
        for batch in follow(source, wait=watching.wait):
            watching.take(batch, is_backlog=source.is_behind)
        watching.end(source)
    finally:
        watching.close()
    return ExitCode.DONE


class _Watching:
    """One watching: what was seen, what was said."""

    def __init__(self, arguments: argparse.Namespace, run: RunDirectory | None) -> None:
        self._json: bool = arguments.json
        self._follow: bool = not arguments.no_follow
        self._step: str = arguments.step
        self._places: list[str] = arguments.places
        self._run = run
        self._watch = AlertWatch(_facts(run), began=time.time())
        self._live = False
        self._first: Record | None = None
        self._last: Record | None = None
        self._records = 0
        self._alerts = 0
        self._has_ended = False
        self._next_line = 0.0
        self._notifier = _make_notifier(arguments) if arguments.notify else None

    def take(self, batch: list[Record], *, is_backlog: bool) -> None:
        """Show a batch and what it alerts to."""
        for record in batch:
            if self._step and record.get("step") != self._step:
                continue
            if self._run is not None and record.get("kind") == "alert":
                self._take_told(record)
                continue
            self._show(record)
            # What was written before we came is judged by its own clock.
            for alert in self._judge(record):
                self._show_alert(alert)
        if self._follow and not is_backlog and not self._live:
            self._live = True
            self._watch.catch_up(_last_change(self._places))
            self._say_backlog()
        if self._live:
            is_alive = self._is_alive()
            # While its supervisor lives, a run's silence is the supervisor's to judge.
            if self._run is None or not is_alive:
                for alert in self._watch.tick(time.time(), is_alive=is_alive):
                    self._show_alert(alert)

    def wait(self, seconds: float) -> bool:
        """Pause between two looks; False ends the watching."""
        if not self._follow or self._has_ended:
            return False
        time.sleep(seconds)
        return True

    def end(self, source: Source) -> None:
        """Say what it came to. Raises SettingsError when nothing was recognised."""
        # A run's own state says whether it failed; a log only that it ended well.
        diagnosis = None if self._has_ended and self._run is None else self._diagnose(source)
        if not (self._records or self._alerts or diagnosis or self._run):
            raise SettingsError(
                f"{' '.join(self._places)} shows no iteration that is known",
                "it reads logs of Megatron-LM, Megatron-Bridge and NeMo, TensorBoard event files and runs",
            )
        if diagnosis and self._json:
            output.print_json({"kind": "diagnosis", **diagnosis.to_json()}, line=True)
        if diagnosis:
            output.say(f"it failed: {diagnosis.sentence}")
            output.say(f"  {diagnosis.why}; {diagnosis.next_step}")
            for key, value in diagnosis.edit.items():
                output.say(f"  change {key} to {value}")
        self._say_end()

    def close(self) -> None:
        if self._notifier:
            self._notifier.close()

    def _show(self, record: Record) -> None:
        if self._json:
            output.print_json(record, line=True)
        if "kind" in record:
            self._note_end(record["kind"])
            if self._live and record["kind"] != "progress":
                output.say(f"          {record.get('message', record['kind'])}")
            return
        self._records += 1
        self._has_ended = False
        if number(record, "loss") is not None:
            self._first, self._last = self._first or record, record
        now = time.monotonic()
        if self._live and now >= self._next_line and "loss" in record:
            self._next_line = now + _LINE_EVERY_S
            output.say(_line(record))

    def _judge(self, record: Record) -> list[Alert]:
        """The alerts that a record raises; those of a run its supervisor has raised already."""
        alerts = self._watch.feed(record, time.time() if self._live else None)
        return alerts if self._run is None else []

    def _take_told(self, record: Record) -> None:
        """Show an alert of the run's supervisor."""
        try:
            alert = Alert.from_json(record)
        except (KeyError, TypeError, ValueError):
            self._show(record)
        else:
            self._show_alert(alert)

    def _note_end(self, kind: str) -> None:
        """A log may hold several jobs, one after the other."""
        if kind in ("finished", "step-started", "resumed"):
            self._has_ended = kind == "finished"

    def _show_alert(self, alert: Alert) -> None:
        self._alerts += 1
        if self._json:
            output.print_json(alert.to_json(), line=True)
        where = f" (iteration {alert.iteration})" if alert.iteration is not None else ""
        output.say(f"{alert.severity.value}: {alert.message}{where}")
        output.say(f"  {alert.evidence}")
        output.say(f"  likely: {alert.cause}")
        output.say(f"  next: {alert.next_step}")
        if self._notifier:
            self._notifier.notify(alert, time.time())

    def _say_backlog(self) -> None:
        if self._last:
            output.say(f"so far:   {_line(self._last).strip()}")

    def _say_end(self) -> None:
        if self._json or not (self._first and self._last):
            if self._run is not None and not self._records:
                output.say(f"{self._run.name} has recorded no iteration yet")
            return
        print(f"iterations  {self._first['iteration']} to {self._last['iteration']}")
        print(f"loss        {self._first['loss']:.4f} -> {self._last['loss']:.4f}")
        print(f"alerts      {self._alerts}")

    def _is_alive(self) -> bool:
        if self._run is None:
            return True
        status = self._run.read_state().observed().status
        self._has_ended = self._has_ended or not (status.is_live or status is Status.PENDING)
        return status is not Status.LOST

    def _diagnose(self, source: Source) -> Diagnosis | None:
        if self._run is not None:
            return cause_of(self._run)
        if isinstance(source, Pipe):
            return diagnose_texts([Text(name="-", lines=tuple(source.last_lines), t=time.time())])
        places = [expanded(place) for place in self._places]
        logs = [log for place in places for log in (find_logs(place) if place.is_dir() else [place])]
        return diagnose_texts(read_logs(log for log in logs if log.suffix != ".jsonl" and not is_event_file(log)))


def _find_run(places: list[str]) -> RunDirectory | None:
    """The run that was named, if it was one."""
    if len(places) != 1 or places[0] == "-":
        return None
    try:
        return directory.find(paths.runs_root(), places[0])
    except NotFoundError:
        return None


def _facts(run: RunDirectory | None) -> Facts:
    return facts_of(settings_file.load(run.settings)) if run else Facts()


def _last_change(places: list[str]) -> float:
    """When anything in `places` was last written; now for a pipe."""
    now = time.time()
    files = [expanded(place) for place in places]
    files = [file for place in files for file in ([*place.iterdir(), place] if place.is_dir() else [place])]
    times = [os.stat(file).st_mtime for file in files if file.exists()]
    return min(now, max(times, default=now))


def _wants_screen(arguments: argparse.Namespace) -> bool:
    """A pipe cannot be read twice, and a summary or the records of one step are lines."""
    is_lines = arguments.no_follow or arguments.step or "-" in arguments.places
    return arguments.show_screen is not None and not is_lines


def _make_notifier(arguments: argparse.Namespace, say: Callable[[str], None] = output.say) -> Notifier:
    return Notifier(load_rules(), " ".join(arguments.places), say)


def _line(record: dict[str, Any]) -> str:
    parts = [f"          iteration {record['iteration']}"]
    for name, form in (("loss", "loss {:.4f}"), ("tokens_per_s", "{:,.0f} tokens/s"), ("iteration_s", "{:.3f} s"),
                       ("tflops_per_gpu", "{:.0f} TFLOP/s/GPU"), ("grad_norm", "gradient norm {:.3f}")):  # fmt: skip
        if (value := number(record, name)) is not None:
            parts.append(form.format(value))
    return "  ".join(parts)
