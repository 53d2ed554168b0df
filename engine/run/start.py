"""What a person does to a run: start, resume, stop, kill. Asks the supervisor, never replaces it."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from engine import env_file, local_paths, paths, patience, secrets, settings_file
from engine.errors import LaunchError, NotFoundError, RunError, UnreadableError
from engine.machine import Machine, detect
from engine.paths import expanded, write_atomic
from engine.plan.plan import Plan
from engine.plan.planner import make_plan
from engine.processes import ProcessId
from engine.run import changes, commands, directory, reports, side_scripts
from engine.run.changes import Resumption
from engine.run.directory import RunDirectory
from engine.run.job import processes_of, supervisor_of
from engine.run.state import State, Status, StepState
from engine.settings import Settings


def create(settings: Settings, plan: Plan, name: str = "") -> RunDirectory:
    """Make the run directory with everything but a supervisor.

    An empty name becomes MODEL-DATE-TIME. Raises RunError when the run exists or the place is
    not writable, SettingsError when a setting or the env file holds a secret.
    """
    settings = local_paths.absolute(settings)
    secrets.refuse(settings_file.dumps(settings), "the run's settings.toml")
    environment = environment_text(settings)
    root = Path(settings.output.directory) if settings.output.directory else paths.runs_root()
    if name:
        _refuse_listed(root, name)
    run = directory.create(root, name) if name else _create_unnamed(root, settings.model.name)
    try:
        _fill(run, settings, plan, environment)
        _list_in_runs_root(run)
    except OSError as error:
        raise RunError(f"{run.path} cannot be written: {error.strerror}", "free some space or choose another "
                       "place with --set output.directory=DIR") from error  # fmt: skip
    return run


def launch(run: RunDirectory, lock: int | None = None) -> None:
    """Give the run its detached supervisor, and with it the `lock` on the run if it is held already.

    Raises LaunchError, also when the run has a supervisor.
    """
    handed_on = () if lock is None else (lock,)
    # By the path that whoever looks for it comes to, also where the runs lie behind a link.
    path = os.path.realpath(run.path)
    started = subprocess.run(
        [sys.executable, "-m", "engine.run.supervisor", path, *map(str, handed_on)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        pass_fds=handed_on,
    )
    if started.returncode != 0:
        message, _, hint = started.stderr.strip().rpartition("\n")
        raise LaunchError(message or started.stderr.strip() or "the supervisor did not start", hint)


def start(settings: Settings, *, name: str = "", machine: Machine | None = None) -> RunDirectory:
    """Plan, create and launch a run. Raises PlanError, and as `create` and `launch` do."""
    plan = make_plan(settings, machine or detect())
    run = create(settings, plan, name)
    launch(run)
    return run


def resume(
    run: RunDirectory,
    values: Mapping[str, object] | None = None,
    *,
    machine: Machine | None = None,
    force: bool = False,
) -> Resumption:
    """Go on with a run that was stopped, failed or lost its supervisor, or prolong a finished one; say what it does.

    Finished steps stay finished and training goes on from its last complete checkpoint. It is judged as a whole
    before anything is written, and nobody else can resume the run meanwhile. Raises RunError when the run is at work,
    LaunchError, and as `changes.judge` does.
    """
    refuse_at_work(run, readable_state(run))
    try:
        with directory.held(run, "gptoss run --resume") as lock:
            state = readable_state(run)
            refuse_at_work(run, state)
            resumption = changes.judge(run, state, values, machine=machine, force=force)
            _write_resumption(run, state, resumption)
            launch(run, lock)
    except OSError as error:
        raise RunError(f"{run.path} cannot be written: {error.strerror}", "check its disk, then resume") from error
    return resumption


def _write_resumption(run: RunDirectory, state: State, resumption: Resumption) -> None:
    environment = environment_text(resumption.settings) if "launch.env_file" in resumption.changed else ""
    # Another launcher follows no job: one left in the queue would train into the same directory.
    end_remains(run, state, keep_queued=resumption.settings.launch.launcher == "slurm")
    # The state first: whoever is killed in between leaves a run that only makes steps again.
    starter = ProcessId.of(os.getpid())
    ready = replace(resumption.state(state), starter=starter, host=platform.node(), heartbeat=time.time())
    write_atomic(run.state, ready.to_json())
    if resumption.changed:
        settings_file.save(resumption.settings, run.settings)
    if resumption.has_new_plan:
        write_atomic(run.plan, resumption.plan.to_json())
    if environment:
        write_atomic(run.environment, environment)
    commands.place_source(run, resumption.settings)
    run.append_event("resumed", "going on where the run was left: " + "; ".join(resumption.told))


def refuse_at_work(run: RunDirectory, state: State) -> None:
    """Raise RunError when the run, which is in `state`, has a supervisor."""
    seen = state.observed()
    if seen.status.is_live:
        raise RunError(f"{run.name} is {seen.status}", f"watch it with: gptoss attach {run.name}")


def stop(run: RunDirectory) -> None:
    """Ask for a graceful stop: Megatron saves a checkpoint first. Raises RunError when nothing runs."""
    try:
        supervisor = answer_of(run.name, lambda: _live_supervisor(run))
    except Unreachable:
        found = supervisor_of(run.path)
        if found is None:
            raise
        supervisor = found
    _signal(supervisor, signal.SIGTERM)


def kill(run: RunDirectory) -> None:
    """End every process of the run now; its record need not be readable. Raises RunError when nothing runs."""
    try:
        state = answer_of(run.name, run.read_state)
    except RunError:
        supervisor = supervisor_of(run.path)
        if supervisor is not None:
            _signal(supervisor, signal.SIGQUIT)
        elif not sum(process.send(signal.SIGKILL) for process in processes_of(run.path)):
            raise
        return
    if state.observed().status is Status.LOST and end_remains(run, state):
        return
    _signal(_live_supervisor(run), signal.SIGQUIT)


def wait(
    run: RunDirectory,
    timeout_s: float,
    until: Iterable[Status] | None = None,
    read: Callable[[], State] | None = None,
) -> State:
    """The state once the run has ended (or reached one of `until`), or when the time is over.

    `read` reads the state, for callers that cannot simply wait for a disk.
    """
    read = read or run.read_state
    wanted = set(until) if until else set(Status) - {Status.PENDING, Status.RUNNING, Status.STOPPING}
    deadline = time.monotonic() + timeout_s
    while True:
        state = read().observed()
        if state.status in wanted or time.monotonic() > deadline:
            return state
        time.sleep(0.1)


def readable_state(run: RunDirectory) -> State:
    """The run's state; a damaged one is rebuilt from what the steps left behind.

    A step without its own success on record is done again: they are all safe to repeat. Raises UnreadableError.
    """
    try:
        return run.read_state()
    except UnreadableError:
        raise
    except RunError as error:
        if "by a newer gptoss" in error.message:
            raise
    plan = run.read_plan()
    attempts = sorted(path.name for path in run.attempts.glob("[0-9]*-*"))
    state = State(
        name=run.name,
        status=Status.STOPPED,
        steps=tuple(StepState(name=step.name) for step in plan.steps),
        created=run.path.stat().st_ctime,
        attempt=max((int(name.partition("-")[0]) for name in attempts), default=0),
    )
    for name in attempts:
        number, _, step = name.partition("-")
        planned = plan.step(step)
        if planned is None:
            continue
        verdict = reports.judge(run.attempts / name, planned.ranks_per_node, 0)
        if verdict.outcome is reports.Outcome.FINISHED:
            state = state.with_step(step, status=Status.FINISHED, attempt=int(number))
            state = replace(state, results={**state.results, step: dict(verdict.result)})
    is_done = all(step.status is Status.FINISHED for step in state.steps)
    return replace(state, status=Status.FINISHED) if is_done else state


def _live_supervisor(run: RunDirectory) -> ProcessId:
    state = run.read_state().observed()
    if not state.status.is_live or state.supervisor is None:
        raise RunError(f"{run.name} is not running: it is {state.status}", state.message)
    if not state.supervisor.is_alive():
        raise RunError(f"{run.name} runs on {state.host}", f"ssh {state.host} gptoss stop {run.name}")
    return state.supervisor


def _signal(supervisor: ProcessId, number: signal.Signals) -> None:
    supervisor.send(number)
    supervisor.send(signal.SIGCONT)  # one that somebody froze could not obey


def end_remains(run: RunDirectory, state: State, *, keep_queued: bool = False) -> int:
    """Kill what a lost supervisor left running; return how many processes or jobs that were.

    With `keep_queued` a Slurm job is spared: the next attempt follows it.
    """
    _, last = run.newest_attempt()
    if keep_queued and last and side_scripts.may_be_queued(last):
        return 0
    left = [*([state.job] if state.job else []), *processes_of(run.path)]
    reported = [report for attempt in run.attempts.glob("[0-9]*-*") for report in reports.read_reports(attempt)
                if report.outcome is reports.Outcome.RUNNING]  # fmt: skip
    left += [report.process for report in reported if report.process]
    ended = sum(process.send(signal.SIGKILL) for process in dict.fromkeys(left))
    # What runs in a container, on other nodes or in a queue is no process of this machine.
    if last and (state.status.is_live or reported or int(last.name.partition("-")[0]) > state.attempt):
        ended += side_scripts.kill(last)
    deadline = time.monotonic() + 10
    while any(process.is_alive() for process in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    return ended


def _create_unnamed(root: Path, model: str) -> RunDirectory:
    base = f"{model}-{time.strftime('%Y%m%d-%H%M%S')}"
    # Two runs may start in the same second.
    for number in range(1, 100):
        name = base if number == 1 else f"{base}-{number}"
        if not (root / name).exists():
            try:
                return directory.create(root, name)
            except RunError:
                if not (root / name).exists():
                    raise
    raise RunError(f"{root} has too many runs called {base}", "give the run a name")


def environment_text(settings: Settings) -> str:
    """The text of the env file that the run keeps; empty without one. Raises SettingsError when it holds a secret."""
    if not settings.launch.env_file:
        return ""
    text = env_file.read_text(expanded(settings.launch.env_file))
    secrets.refuse_names(env_file.parse(text), settings.launch.env_file)
    secrets.refuse(text, settings.launch.env_file)
    return text


def _fill(run: RunDirectory, settings: Settings, plan: Plan, environment: str) -> None:
    settings_file.save(settings, run.settings)
    write_atomic(run.plan, plan.to_json())
    if environment:
        write_atomic(run.environment, environment)
    port = settings.launch.master_port or 29500
    env_file.write(run.environment, commands.environment_values(settings, plan, port))
    write_atomic(run.command, commands.all_steps_script(run, settings, plan), mode=0o755)
    commands.place_source(run, settings)
    steps = tuple(StepState(name=step.name) for step in plan.steps)
    now, starter = time.time(), ProcessId.of(os.getpid())
    state = State(name=run.name, steps=steps, created=now, heartbeat=now, starter=starter)
    # Last: a directory with a state is a run.
    write_atomic(run.state, state.to_json())


def _list_in_runs_root(run: RunDirectory) -> None:
    """Link a run that lives elsewhere into the list of runs, so that its name finds it."""
    root = paths.runs_root()
    if run.path.parent.resolve() == root.resolve():
        return
    root.mkdir(parents=True, exist_ok=True)
    link = root / run.name
    if link.is_symlink() and not link.exists():
        link.unlink()
    try:
        link.symlink_to(run.path)
    except FileExistsError:
        raise _is_listed(run.name) from None


def _refuse_listed(root: Path, name: str) -> None:
    """Raise RunError for a name in the list of runs, before anything is made elsewhere."""
    listed = paths.runs_root() / name
    if root.resolve() != listed.parent.resolve() and listed.exists():
        raise _is_listed(name)


def _is_listed(name: str) -> RunError:
    return RunError(f"another run is called {name!r}", "give this one another name")


class Unreachable(RunError):
    """The disk of a run does not answer."""


def silent(name: str, seconds: float = patience.ANSWER_S) -> Unreachable:
    """The error for a run whose disk has not answered for so long."""
    message = f"{name} gives {patience.NoAnswer(seconds).strerror}"
    return Unreachable(message, "is the share that it is on down? runs: gptoss runs")


def answer_of[T](name: str, call: Callable[[], T]) -> T:
    """What `call` learns from the disk of a run. Raises Unreachable for one that is silent."""
    try:
        return patience.within(call)
    except patience.NoAnswer as error:
        raise silent(name) from error


def find(reference: str) -> RunDirectory:
    """A run by name, by path, or `last` for the newest.

    Raises NotFoundError, and RunError for one whose disk does not answer.
    """
    root = paths.runs_root()
    if reference not in ("", "last"):
        return answer_of(reference, lambda: directory.find(root, reference))
    runs = directory.list_runs(root)
    if not runs:
        raise NotFoundError(f"there is no run in {root} yet", "start one with: gptoss quickstart")
    return runs[0]
