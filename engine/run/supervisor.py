"""The process that carries out one run: detached, one per run, the only writer of `state.json`.

`python -m engine.run.supervisor RUN_DIR` returns once the detached supervisor holds the run.
SIGTERM stops gracefully (Megatron saves first), SIGQUIT ends everything at once.
"""

from __future__ import annotations

import errno
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from engine import env_file, settings_file
from engine.errors import EngineError, RunError, UnreadableError
from engine.launch import local
from engine.monitor.alert import Alert
from engine.paths import write_atomic
from engine.plan.plan import PlannedStep
from engine.processes import ProcessId
from engine.run import commands, reports, rotation, side_scripts
from engine.run.detached import HELD, answer, detach, note, unwritable, why_not
from engine.run.directory import RunDirectory, end_half_line, hold, note_holder
from engine.run.foreign_log import ForeignLog
from engine.run.health import Health, explain
from engine.run.job import Job, adopt_orphans, end_descendants, signal_all
from engine.run.oversight import Oversight, stop_before
from engine.run.reports import Outcome, Verdict
from engine.run.side_scripts import SideScripts
from engine.run.state import Status

POLL_S = 0.1
HEARTBEAT_S = 1.0
MAX_RESTART_WAIT_S = 300.0
DIRECTORY_WAIT_S = 600.0
RESERVE_BYTES = 65_536
"""Kept free for the last words of a run that a full disk ends."""
HOLDER = "its supervisor"


class Supervisor:
    """Carries out the steps of one run that are not finished yet."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.settings = settings_file.load(run.settings)
        self.plan = run.read_plan()
        self.state = run.read_state()
        self._stop_wanted = False
        self._kill_wanted = False
        self.health = Health(run, self.settings, note)
        self._scripts: SideScripts | None = None
        """Those of the attempt that may still have processes somewhere."""
        self._last_write = 0.0
        now = time.time()
        end = stop_before(self.settings.launch.grace_s, now)
        # On the clock that nobody sets.
        self._stop_before = None if end is None else time.monotonic() + end - now
        self._last_trouble = ""

    def take_over(self) -> None:
        """Listen to signals, adopt what the steps leave, and say so in the state. Raises OSError."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGQUIT, self._on_kill)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        adopt_orphans()
        running = replace(
            self.state,
            status=Status.RUNNING,
            supervisor=ProcessId.of(os.getpid()),
            starter=None,
            host=platform.node(),
            heartbeat=time.time(),
        )
        write_atomic(self.run.state, running.to_json())

    def carry_out(self) -> Status:
        """Run every unfinished step in order; return how the run ended."""
        self._update(status=Status.RUNNING, supervisor=ProcessId.of(os.getpid()), ended=None, message="")
        for step in self.plan.steps:
            if self.state.find_step(step.name).status is Status.FINISHED:
                continue
            verdict = self._carry_out_step(step)
            if verdict.outcome is not Outcome.FINISHED:
                return self._end(verdict, step)
            if step.name == "prepare":
                # It has turned `finetune.epochs` into iterations.
                self.settings = settings_file.load(self.run.settings)
                self.health.adopt(self.settings)
        self._event("finished", "all steps are done")
        self._update(status=Status.FINISHED, ended=time.time(), message="all steps are done", job=None)
        return Status.FINISHED

    def give_up(self, error: Exception) -> None:
        """Record an error that no step can answer for."""
        if isinstance(error, EngineError):
            message = f"{error.message} ({error.hint})"
        elif isinstance(error, OSError):
            message = f"{unwritable(error)}; when it can, continue with: gptoss run --resume {self.run.name}"
        else:
            message = f"unexpected {type(error).__name__}: {error} (see supervisor.log)"
        self._update(status=Status.FAILED, ended=time.time(), message=message, job=None)
        self._event("failed", message)

    def _carry_out_step(self, step: PlannedStep) -> Verdict:
        """Attempt a step, and again after a failure that may not repeat; every step is safe to repeat."""
        # The tutorial's script loads no checkpoint: a restart would only begin anew.
        would_begin_anew = step.name == "train" and self.settings.launch.route == "tutorial"
        allowed = 0 if would_begin_anew else self.settings.launch.restarts
        restart = 0
        furthest = self.run.last_checkpoint() or 0
        while True:
            verdict = self._attempt_or_failure(step)
            if verdict.outcome is not Outcome.FAILED or not verdict.is_curable:
                return verdict
            if (self.run.last_checkpoint() or 0) > furthest:
                furthest = self.run.last_checkpoint() or 0
                restart = 0  # it came further: a week with three lost nodes is no run that cannot work
            if restart == allowed:
                return verdict
            wait_s = min(self.settings.launch.restart_wait_s * 2**restart, MAX_RESTART_WAIT_S)
            if self._scripts:
                wait_s = 0.0  # it goes on in the queue, and is to be followed
            restart += 1
            last = self.run.last_checkpoint()
            self._event(
                "restart",
                f"{verdict.message}; starting {step.name} again in {wait_s:.0f} s, last checkpoint "
                f"{'none' if last is None else last} (restart {restart} of {allowed})",
                step=step.name,
            )
            self._pause(wait_s)
            if self._stop_wanted:
                return Verdict(outcome=Outcome.STOPPED)

    def _attempt_or_failure(self, step: PlannedStep) -> Verdict:
        """An attempt; a disk that cannot be written fails it like anything else that may pass."""
        try:
            return self._attempt(step)
        except OSError as error:
            self.end_processes()
            return Verdict(outcome=Outcome.FAILED, message=unwritable(error), hint="check the disk and its free space")
        except UnreadableError as error:
            self.end_processes()
            return Verdict(outcome=Outcome.FAILED, message=error.message, hint=error.hint)

    def end_processes(self) -> None:
        """End every process of the attempt, here and elsewhere; reads nothing of the run."""
        if self._scripts:
            self._scripts.kill()
            self._scripts = None
        end_descendants()

    def _attempt(self, step: PlannedStep) -> Verdict:
        if self._stop_wanted:
            return Verdict(outcome=Outcome.STOPPED)
        self._await_directory()
        # One that was begun and never noted has left its reports in its directory.
        number = max(self.state.attempt, self.run.newest_attempt()[0]) + 1
        attempt = self.run.attempt(number, step.name)
        # Without `parents`: a run whose disk was unmounted must not begin anew on the mount point.
        attempt.mkdir(exist_ok=True)
        for records in (self.run.metrics, self.run.events):
            end_half_line(records)
        self.run.reserve.write_bytes(bytes(RESERVE_BYTES))
        port = self._write_environment(number)
        command = commands.for_step(self.run, self.settings, self.plan, step, attempt, port)
        self.state = self.state.with_step(
            step.name, status=Status.RUNNING, attempt=number, started=time.time(), ended=None, message=""
        )
        self._update(step=step.name, attempt=number)
        if step.name == "train" and rotation.is_ours_to_settle(self.settings):
            for sentence in rotation.settle(self.run, self.settings):
                self._event("warning", sentence, step=step.name)
        scripts = self._scripts = SideScripts(command, attempt)
        job = Job(scripts.write(), attempt / "launcher.log")
        self._update(job=job.id)
        self._event("step-started", f"{step.name} started (attempt {number})", step=step.name, attempt=number)
        log = None if command.reports else ForeignLog(self.run, attempt, command.log, step.name)
        return_code, ended = self._watch(job, scripts, attempt, log)
        verdict = reports.judge(attempt, command.ranks, return_code, has_reports=command.reports)
        if log:
            verdict = self._judge_foreign(verdict, log)
        # A job in the queue outlives the process that follows it: the next attempt goes on following.
        is_followed = return_code < 0 and not ended and not self._stop_wanted and side_scripts.is_queued(attempt)
        if verdict.outcome is Outcome.FINISHED:
            self._scripts = None
        if is_followed:
            end_descendants()
        else:
            self.end_processes()
        self._look()
        explained = self._guarded(partial(explain, attempt, verdict, self.settings, self.plan), verdict)
        verdict = self._qualify(explained, attempt, ended)
        self._record(step, attempt, verdict)
        return verdict

    def _qualify(self, verdict: Verdict, attempt: Path, ended: Verdict | None) -> Verdict:
        """The verdict in the light of who ended the attempt: a person, we ourselves, or somebody outside."""
        if verdict.outcome is Outcome.FINISHED:
            return verdict
        # A rank killed before it could save reports nothing; that is what stopping meant.
        if self._stop_wanted or self._kill_wanted:
            return Verdict(outcome=Outcome.STOPPED)
        if ended and ended.message:
            return ended
        # What Slurm stops, at its time limit or for `scancel`, is its affair.
        if verdict.outcome is Outcome.STOPPED and not side_scripts.is_queued(attempt):
            return Verdict(outcome=Outcome.FAILED, message="a signal from outside gptoss stopped it; it saved first")
        return verdict

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
            note(f"the log's metrics were not written: {error}")

    def _watch(
        self, job: Job, scripts: SideScripts, attempt: Path, log: ForeignLog | None
    ) -> tuple[int, Verdict | None]:
        """Wait for the job, passing on stop and kill; return its code, and the verdict if we had to end it."""
        asked = False
        deadline = 0.0
        oversight = Oversight(self.run, attempt, self.settings, self.health, self._event)
        ended: Verdict | None = None
        while (code := job.poll()) is None:
            time.sleep(POLL_S)
            self._mind_the_time()
            if self._stop_wanted and not asked:
                asked, deadline = True, time.monotonic() + self.settings.launch.grace_s
                self._ask_to_stop(job, scripts, attempt)
            if not asked and not ended:
                ended = self._guarded(oversight.look, None)
            if self._kill_wanted or ended or (asked and time.monotonic() > deadline):
                self._event("killing", "ending every process of the run now")
                scripts.kill()
                end_descendants()
            if log:
                self._copy(log)
            self._heartbeat()
        return code, ended

    def _guarded[T](self, look: Callable[[], T], otherwise: T) -> T:
        """What `look` finds. What only watches must not end a training: neither by a mistake nor by a lost share."""
        try:
            return look()
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self._last_trouble:
                self._last_trouble = trouble
                note(f"watching failed: {trouble}\n{traceback.format_exc()}")
            return otherwise

    def _mind_the_time(self) -> None:
        """Stop in time when the Slurm allocation around this supervisor ends."""
        if self._stop_before is not None and time.monotonic() >= self._stop_before and not self._stop_wanted:
            self._event("time-limit", "the Slurm allocation is about to end")
            self._stop_wanted = True

    def _await_directory(self) -> None:
        """Wait for a run directory that is gone: a share may come back. Raises RunError when it does not."""
        end = time.monotonic() + DIRECTORY_WAIT_S
        while not self._is_there() and not self._stop_wanted:
            if time.monotonic() > end:
                raise RunError(f"{self.run.path} is gone", "mount its disk again, then resume")
            time.sleep(POLL_S)

    def _is_there(self) -> bool:
        try:
            return self.run.state.exists()
        except OSError:
            return False

    def _ask_to_stop(self, job: Job, scripts: SideScripts, attempt: Path) -> None:
        """Signal the ranks themselves: torchrun would give them only 30 s after its own signal."""
        self._update(status=Status.STOPPING, message="saving a checkpoint before stopping")
        self._event("stopping", f"stopping; a checkpoint is saved first (at most {self.settings.launch.grace_s} s)")
        if scripts.ask_to_stop():
            return
        try:
            ranks = [r.process for r in reports.read_reports(attempt) if r.outcome is Outcome.RUNNING]
        except OSError:
            ranks = []  # the launcher passes it on
        if not signal_all(ranks, signal.SIGTERM):
            job.signal_launcher(signal.SIGTERM)
        signal_all(ranks, signal.SIGCONT)  # one that somebody froze could not obey

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
        nothing: list[Alert] = []
        for alert in self._guarded(partial(self.health.look, is_training=is_training), nothing):
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
            self._write_state()
        except OSError as error:
            # A full disk must not end the training that it may yet let finish; the next
            # heartbeat tries again.
            note(f"state.json was not written: {error}")

    def _write_state(self) -> None:
        try:
            write_atomic(self.run.state, self.state.to_json())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self.state.status.is_live:
                raise
            # How a run ended must be told even on the full disk that ended it.
            self.run.reserve.unlink(missing_ok=True)
            write_atomic(self.run.state, self.state.to_json())

    def _event(self, kind: str, message: str, **facts: object) -> None:
        note(message)
        try:
            self.run.append_event(kind, message, **facts)
        except OSError as error:
            note(f"the event was not written: {error}")

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop_wanted = True

    def _on_kill(self, number: int, frame: FrameType | None) -> None:
        self._stop_wanted = self._kill_wanted = True


def _supervise(run: RunDirectory, ready: int, lock: int | None) -> int:
    try:
        if lock is None:
            lock = hold(run, HOLDER)
        else:
            os.set_inheritable(lock, False)  # a rank that outlives us must not hold the run
            note_holder(lock, HOLDER)
        supervisor = Supervisor(run)
        log = os.open(run.supervisor_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        supervisor.take_over()
    except (EngineError, OSError) as error:
        answer(ready, why_not(error))
        return 1
    os.dup2(log, 1)
    os.dup2(log, 2)
    answer(ready, HELD)
    os.close(ready)
    try:
        return 0 if supervisor.carry_out() is Status.FINISHED else 1
    except Exception as error:
        # The last line of defence of a run that nobody may be watching: its record must say why.
        supervisor.give_up(error)
        raise
    finally:
        supervisor.end_processes()
        supervisor.health.close()
        os.close(lock)


def main(arguments: list[str]) -> int:
    """Detach, take the run and carry it out; the starter gets 0 once it is held, else the reason.

    A second argument is the number of an open file through which the starter holds the run and hands it on.
    """
    run = RunDirectory(Path(arguments[0]))
    lock = int(arguments[1]) if arguments[1:] else None
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as pipe:
            reason = pipe.read()
        if reason != HELD:
            print(reason or "the supervisor ended before it held the run\nsee supervisor.log", file=sys.stderr)
        return 0 if reason == HELD else 1
    os.close(reader)
    detach()
    return _supervise(run, writer, lock)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
