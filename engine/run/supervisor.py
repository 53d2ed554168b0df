"""The process that carries out one run: detached, one per run, the only writer of `state.json`.

`python -m engine.run.supervisor RUN_DIR` returns once the detached supervisor holds the run.
SIGTERM stops gracefully (Megatron saves first), SIGQUIT ends everything at once.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from engine import env_file, settings_file
from engine.errors import EngineError, RunError
from engine.launch import local
from engine.launch.command import Command
from engine.paths import write_atomic
from engine.plan.plan import PlannedStep
from engine.processes import ProcessId
from engine.run import commands, reports, side_scripts
from engine.run.directory import RunDirectory
from engine.run.foreign_log import ForeignLog
from engine.run.health import Health, explain
from engine.run.job import Job, adopt_orphans, end_descendants, signal_all
from engine.run.reports import Outcome, Verdict
from engine.run.state import Status

POLL_S = 0.1
HEARTBEAT_S = 1.0
MAX_RESTART_WAIT_S = 300.0


class Supervisor:
    """Carries out the steps of one run that are not finished yet."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.settings = settings_file.load(run.settings)
        self.plan = run.read_plan()
        self.state = run.read_state()
        self._stop_wanted = False
        self._kill_wanted = False
        self.health = Health(run, self.settings, _log)
        self._last_write = 0.0

    def carry_out(self) -> Status:
        """Run every unfinished step in order; return how the run ended."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGQUIT, self._on_kill)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        adopt_orphans()
        self._update(status=Status.RUNNING, supervisor=ProcessId.of(os.getpid()), ended=None, message="")
        for step in self.plan.steps:
            if self.state.find_step(step.name).status is Status.FINISHED:
                continue
            verdict = self._carry_out_step(step)
            if verdict.outcome is not Outcome.FINISHED:
                return self._end(verdict, step)
        self._event("finished", "all steps are done")
        self._update(status=Status.FINISHED, ended=time.time(), message="all steps are done", job=None)
        return Status.FINISHED

    def give_up(self, error: Exception) -> None:
        """Record an error that no step can answer for."""
        if isinstance(error, EngineError):
            message = f"{error.message} ({error.hint})"
        else:
            message = f"unexpected {type(error).__name__}: {error} (see supervisor.log)"
        self._update(status=Status.FAILED, ended=time.time(), message=message, job=None)
        self._event("failed", message)

    def _carry_out_step(self, step: PlannedStep) -> Verdict:
        """Attempt a step, and again after a failure that may not repeat; every step is safe to repeat."""
        # The tutorial's script loads no checkpoint: a restart would only begin anew.
        would_begin_anew = step.name == "train" and self.settings.launch.route == "tutorial"
        restarts = 0 if would_begin_anew else self.settings.launch.restarts
        for restart in range(restarts + 1):
            verdict = self._attempt(step)
            if verdict.outcome is not Outcome.FAILED or not verdict.is_curable or restart == restarts:
                return verdict
            wait_s = min(self.settings.launch.restart_wait_s * 2**restart, MAX_RESTART_WAIT_S)
            self._event(
                "restart",
                f"{verdict.message}; starting {step.name} again in {wait_s:.0f} s, last checkpoint "
                f"{self.run.last_checkpoint() or 'none'} (restart {restart + 1} of {restarts})",
                step=step.name,
            )
            self._pause(wait_s)
            if self._stop_wanted:
                return Verdict(outcome=Outcome.STOPPED)
        raise AssertionError("the last attempt returns")

    def _attempt(self, step: PlannedStep) -> Verdict:
        if self._stop_wanted:
            return Verdict(outcome=Outcome.STOPPED)
        number = self.state.attempt + 1
        attempt = self.run.attempt(number, step.name)
        attempt.mkdir(parents=True, exist_ok=True)
        port = self._write_environment(number)
        command = commands.for_step(self.run, self.settings, self.plan, step, attempt, port)
        job = self._start(command, attempt)
        now = time.time()
        self.state = self.state.with_step(
            step.name, status=Status.RUNNING, attempt=number, started=now, ended=None, message=""
        )
        self._update(step=step.name, attempt=number, job=job.id)
        self._event("step-started", f"{step.name} started (attempt {number})", step=step.name, attempt=number)
        log = None if command.reports else ForeignLog(self.run, attempt, command.log, step.name)
        return_code = self._watch(job, attempt, log)
        verdict = reports.judge(attempt, command.ranks, return_code, has_reports=command.reports)
        if log:
            verdict = self._judge_foreign(verdict, log)
        if verdict.outcome is not Outcome.FINISHED:
            side_scripts.kill(attempt)
        end_descendants()
        self._look()
        verdict = explain(attempt, verdict, self.settings, self.plan)
        # A rank killed before it could save reports nothing; that is what stopping meant.
        if (self._stop_wanted or self._kill_wanted) and verdict.outcome is Outcome.FAILED:
            verdict = Verdict(outcome=Outcome.STOPPED)
        self._record(step, attempt, verdict)
        return verdict

    def _start(self, command: Command, attempt: Path) -> Job:
        return Job(side_scripts.write(command, attempt), attempt / "launcher.log")

    def _judge_foreign(self, verdict: Verdict, log: ForeignLog) -> Verdict:
        """What is known of a program that reports nothing: it may well return 0 after a stop."""
        if self._stop_wanted:
            return Verdict(outcome=Outcome.STOPPED)
        self._copy(log)
        return replace(verdict, result=log.result)

    def _copy(self, log: ForeignLog) -> None:
        try:
            log.copy()
        except OSError as error:
            _log(f"the log's metrics were not written: {error}")

    def _watch(self, job: Job, attempt: Path, log: ForeignLog | None) -> int:
        """Wait for the job, writing heartbeats and passing on stop and kill."""
        asked = False
        deadline = 0.0
        while (code := job.poll()) is None:
            time.sleep(POLL_S)
            if self._stop_wanted and not asked:
                asked, deadline = True, time.monotonic() + self.settings.launch.grace_s
                self._ask_to_stop(job, attempt)
            if self._kill_wanted or (asked and time.monotonic() > deadline):
                self._event("killing", "ending every process of the run now")
                side_scripts.kill(attempt)
                end_descendants()
            if log:
                self._copy(log)
            self._heartbeat()
        return code

    def _ask_to_stop(self, job: Job, attempt: Path) -> None:
        """Signal the ranks themselves: torchrun would give them only 30 s after its own signal."""
        self._update(status=Status.STOPPING, message="saving a checkpoint before stopping")
        self._event("stopping", f"stopping; a checkpoint is saved first (at most {self.settings.launch.grace_s} s)")
        if side_scripts.ask_to_stop(attempt):
            return
        ranks = [r.process for r in reports.read_reports(attempt) if r.outcome is Outcome.RUNNING]
        if not signal_all(ranks, signal.SIGTERM):
            job.signal_launcher(signal.SIGTERM)

    def _record(self, step: PlannedStep, attempt: Path, verdict: Verdict) -> None:
        status = Status(verdict.outcome.value)
        self.state = self.state.with_step(step.name, status=status, ended=time.time(), message=verdict.message)
        changes: dict[str, object] = {"job": None}
        if verdict.outcome is Outcome.FINISHED:
            changes["results"] = {**self.state.results, step.name: dict(verdict.result)}
        self._update(**changes)
        kind = {Outcome.FINISHED: "step-finished", Outcome.STOPPED: "step-stopped"}.get(verdict.outcome, "step-failed")
        message = verdict.message or f"{step.name} {verdict.outcome.value}"
        self._event(kind, message, step=step.name, attempt=self.state.attempt, hint=verdict.hint)

    def _end(self, verdict: Verdict, step: PlannedStep) -> Status:
        status = Status(verdict.outcome.value)
        if status is Status.STOPPED:
            message = f"stopped during {step.name}; continue with: gptoss run --resume {self.run.name}"
        else:
            message = f"{step.name} failed: {verdict.message}" + (f" ({verdict.hint})" if verdict.hint else "")
        self._update(status=status, ended=time.time(), message=message, job=None)
        self._event(status.value, message, step=step.name)
        return status

    def _write_environment(self, attempt: int) -> int:
        """Write the env file, with another port when the wanted one is taken on this machine; return the port."""
        launch = self.settings.launch
        if self.plan.nodes == 1 and launch.launcher != "slurm":
            port = local.free_port(launch.master_port)
            if launch.master_port and port != launch.master_port:
                self._event("note", f"port {launch.master_port} is in use; using {port} instead")
        else:
            port = commands.rendezvous_port(self.run, self.settings, attempt)
        env_file.write(self.run.environment, commands.environment_values(self.settings, self.plan, port))
        return port

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._stop_wanted:
            time.sleep(POLL_S)
            self._heartbeat()

    def _heartbeat(self) -> None:
        if time.time() - self._last_write >= HEARTBEAT_S or time.time() < self._last_write:
            self._look()

    def _look(self) -> None:
        """Take in what the run wrote since the last look, raise alerts, and write the state."""
        is_training = self.state.step == "train" and self.state.job is not None
        for alert in self.health.look(is_training=is_training):
            facts = alert.to_json()
            for taken in ("kind", "message", "t"):
                del facts[taken]
            self._event("alert", alert.message, **facts)
        self._update(iteration=self.health.iteration or self.state.iteration)

    def _update(self, **changes: object) -> None:
        now = time.time()
        self.state = replace(self.state, heartbeat=now, checkpoint=self.run.last_checkpoint(), **changes)  # type: ignore[arg-type]
        self._last_write = now
        try:
            write_atomic(self.run.state, self.state.to_json())
        except OSError as error:
            # A full disk must not end the training that it may yet let finish; the next
            # heartbeat tries again.
            _log(f"state.json was not written: {error}")

    def _event(self, kind: str, message: str, **facts: object) -> None:
        _log(message)
        try:
            self.run.append_event(kind, message, **facts)
        except OSError as error:
            _log(f"the event was not written: {error}")

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_wanted = True

    def _on_kill(self, number: int, frame: FrameType | None) -> None:
        self._stop_wanted = self._kill_wanted = True


def _log(text: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)


def _take_lock(run: RunDirectory) -> int:
    """Hold the run for this process's life. Raises RunError when another supervisor does."""
    descriptor = os.open(run.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise RunError(f"{run.name} has a supervisor already", f"watch it with: gptoss attach {run.name}") from None
    return descriptor


def _detach(ready: int) -> None:
    """Leave the starter's session and files; `ready` stays open until the run is held."""
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)


def _supervise(run: RunDirectory, ready: int) -> int:
    try:
        lock = _take_lock(run)
        supervisor = Supervisor(run)
    except EngineError as error:
        os.write(ready, f"{error.message}\n{error.hint}".encode())
        return 1
    log = os.open(run.supervisor_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    write_atomic(run.state, replace(supervisor.state, status=Status.RUNNING, supervisor=ProcessId.of(os.getpid()),
                                    heartbeat=time.time()).to_json())  # fmt: skip
    os.close(ready)
    try:
        return 0 if supervisor.carry_out() is Status.FINISHED else 1
    except Exception as error:
        # The last line of defence of a run that nobody may be watching: its record must say why.
        supervisor.give_up(error)
        raise
    finally:
        end_descendants()
        supervisor.health.close()
        os.close(lock)


def main(arguments: list[str]) -> int:
    """Detach, take the run and carry it out; the starter gets 0 once it is held, else the reason."""
    run = RunDirectory(Path(arguments[0]))
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as pipe:
            reason = pipe.read()
        if reason:
            print(reason, file=sys.stderr)
        return 1 if reason else 0
    os.close(reader)
    _detach(writer)
    return _supervise(run, writer)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
