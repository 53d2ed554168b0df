"""The verbs about existing runs: runs, attach, stop, kill, logs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine import paths, patience
from engine.cli import follow, output
from engine.cli.starting import follow_to_end
from engine.errors import ExitCode, NotFoundError, RunError
from engine.monitor import labels
from engine.monitor.tail import Tail
from engine.run import directory, repair, start
from engine.run.directory import RunDirectory

UNREACHABLE = "unreachable"
"""The status of a run whose disk does not answer, or is not there."""


def list_runs(arguments: argparse.Namespace) -> int:
    """Print every run with its status, newest first; with --repair mend their records instead."""
    if arguments.repair:
        return _repair(as_json=arguments.json)
    wanted = arguments.filter.lower()
    known = _known(paths.runs_root())
    facts = [one for one in known if (arguments.archived or not one["archived"]) and wanted in _searchable(one)]
    if arguments.json:
        output.print_json(facts)
    elif not facts and known:
        output.say(f"none of the {len(known)} runs fits; --archived shows those that were put away, too")
    elif not facts:
        output.say("there is no run yet; start one with: gptoss quickstart")
    else:
        heads = ("RUN", "STATUS", "STEP", "ITERATION", "CREATED", "LABELS")
        print(output.clean(output.table([_row(fact) for fact in facts], heads)))
        for fact in facts:
            if fact["status"] == UNREACHABLE:
                output.say(output.clean(f"{fact['run']}: {fact['message']}"))
    return ExitCode.DONE


def _known(root: Path) -> list[dict[str, Any]]:
    """The facts of every run, newest first; those whose disk does not answer come last."""
    runs, problems = directory.look_around(root)
    known = []
    for run, facts in patience.each(runs, _facts):
        if isinstance(facts, patience.NoAnswer):
            problems[run.name] = str(facts.strerror)
        else:
            known.append(facts)
    return known + [_unreachable(root / name, message) for name, message in sorted(problems.items())]


def _unreachable(path: Path, message: str) -> dict[str, Any]:
    """The facts of a run that nothing is known of."""
    return {"run": path.name, "directory": str(path), "tags": [], "note": "", "archived": False,
            "status": UNREACHABLE, "message": message}  # fmt: skip


def _repair(*, as_json: bool) -> int:
    told = repair.repair_all(paths.runs_root())
    if as_json:
        output.print_json(told)
    elif not told:
        output.say("nothing to repair")
    else:
        print(output.clean("\n".join(f"{name}: {sentence}" for name, found in told.items() for sentence in found)))
    return ExitCode.DONE


def attach(arguments: argparse.Namespace) -> int:
    """Follow a run without a screen; one that is over prints what it came to."""
    run = start.find(arguments.run)
    start.answer_of(run.name, run.read_state)  # a damaged run says so before the screen opens
    if arguments.show_screen and not arguments.json:
        return int(arguments.show_screen("monitor", run))
    return follow_to_end(run, as_json=arguments.json)


def stop(arguments: argparse.Namespace) -> int:
    """Ask for a graceful stop, and wait for it when asked to."""
    run = start.find(arguments.run)
    start.stop(run)
    output.say(f"stopping {run.name}; it saves a checkpoint first")
    if arguments.wait:
        _await_end(run, partial(follow.tell_silence, run))
    return _print_state(run, arguments.json)


def kill(arguments: argparse.Namespace) -> int:
    """End every process of a run and wait until they are gone."""
    run = start.find(arguments.run)
    start.kill(run)

    def give_up() -> None:
        raise start.silent(run.name)

    try:
        _await_end(run, give_up)
    except RunError as error:  # a share that is gone does not keep its processes from being ended
        output.say(f"every process of {run.name} was told to end; {error.message}")
        return ExitCode.DONE
    return _print_state(run, arguments.json)


def logs(arguments: argparse.Namespace) -> int:
    """Print one rank's log, and what is added to it when asked to follow."""
    run = start.find(arguments.run)
    path = start.answer_of(run.name, lambda: _log_path(run, arguments.step, arguments.rank))
    tail, disk = Tail(path), patience.Patient()

    def look() -> tuple[bool, list[bytes]]:
        # Asked before the log is read, so that nothing of its end is missed.
        return arguments.follow and run.read_state().observed().status.is_live, tail.read()

    def on_silence() -> None:
        if not arguments.follow:
            raise start.silent(run.name)
        follow.tell_silence(run)

    try:
        while True:
            goes_on, lines = disk.wait_for(look, on_silence)
            for line in lines:
                print(_log_line(line))
            if tail.is_behind:
                continue
            if not goes_on:
                if tail.unfinished:
                    print(_log_line(tail.unfinished))
                return ExitCode.DONE
            sys.stdout.flush()
            time.sleep(0.2)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _log_line(line: bytes) -> str:
    """A line as a terminal would leave it: of a progress bar that was drawn over and over, the last state."""
    return output.clean(line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2])


def _facts(run: RunDirectory) -> dict[str, Any]:
    written = labels.read(run.path)
    own = {"run": run.name, "directory": str(run.path), "tags": list(written.tags), "note": written.note,
           "archived": written.is_archived}  # fmt: skip
    try:
        state = run.read_state().observed()
    except RunError as error:
        return {**own, "status": "damaged", "message": error.message}
    return {
        **own,
        "status": state.status.value,
        "step": state.step,
        "attempt": state.attempt,
        "iteration": state.iteration,
        "checkpoint": state.checkpoint,
        "created": state.created,
        "ended": state.ended,
        "host": state.host,
        "message": state.message,
    }


def _row(fact: dict[str, Any]) -> tuple[str, ...]:
    created = fact.get("created")
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(created)) if created else ""
    written = labels.Labels(tags=tuple(fact["tags"]), note=fact["note"]).text
    return (fact["run"], fact["status"], str(fact.get("step", "")), str(fact.get("iteration", "")), when, written)


def _searchable(fact: dict[str, Any]) -> str:
    tags = " ".join(f"#{tag}" for tag in fact["tags"])
    return f"{fact['run']} {fact['status']} {fact.get('step', '')} {tags} {fact['note']}".lower()


def _await_end(run: RunDirectory, on_silence: Callable[[], None]) -> None:
    disk = patience.Patient()
    try:
        start.wait(run, timeout_s=24 * 3600, read=lambda: disk.wait_for(run.read_state, on_silence))
    except KeyboardInterrupt:
        output.say("\nno longer waiting; the request stands")


def _print_state(run: RunDirectory, as_json: bool) -> int:
    [(_, facts)] = patience.each([run], _facts)
    if isinstance(facts, patience.NoAnswer):
        facts = _unreachable(run.path, str(facts.strerror))
        output.say(output.clean(f"{run.name}: {facts['message']}"))
    if as_json:
        output.print_json(facts)
    else:
        print(output.clean(f"{facts['run']}: {facts['status']}"))
    return ExitCode.DONE


def _log_path(run: RunDirectory, step: str, rank: int) -> Path:
    state = run.read_state()
    wanted = step or state.step
    numbers = [s.attempt for s in state.steps if s.name == wanted and s.attempt]
    if not numbers:
        steps = ", ".join(s.name for s in state.steps if s.attempt) or "none"
        raise NotFoundError(f"{run.name} has no attempt of the step {wanted!r}", f"steps with logs: {steps}")
    attempt = run.attempt(numbers[0], wanted)
    path = attempt / f"rank-{rank}.log"
    if not path.exists():
        there = ", ".join(sorted(p.name for p in attempt.glob("*.log")))
        raise NotFoundError(f"{attempt.name} has no log of rank {rank}", f"there are: {there or 'none yet'}")
    return path
