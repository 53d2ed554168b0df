"""Make the record of a run true again after its supervisor, its machine or its disk failed.

Ends what is left of it and removes what was being written. Never touches a run at work, a finished
result, a checkpoint, or a job that waits in a queue.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Container, Iterator
from dataclasses import replace
from pathlib import Path

from engine.errors import RunError
from engine.paths import write_atomic
from engine.run import directory, side_scripts, start
from engine.run.directory import RunDirectory
from engine.run.job import processes_by_run
from engine.run.state import State, Status

MAKING_S = 60.0
"""A directory of a run without a plan that is younger may be in the making."""
_HALF_WRITTEN = re.compile(r"\..+\.[a-z0-9_]{8}")
"""What `write_atomic` calls a file until it is whole."""


def repair_all(root: Path) -> dict[str, list[str]]:
    """What was done or found, by the name of the run; runs with nothing to tell are left out."""
    try:
        entries = sorted(root.iterdir())
    except OSError:
        return {}
    at_work = processes_by_run().keys()
    told = {entry.name: _repair_entry(entry, at_work) for entry in entries}
    return {name: sentences for name, sentences in told.items() if sentences}


def repair(run: RunDirectory, *, has_processes: bool = True) -> list[str]:
    """What was done to `run`, a sentence each; empty when nothing was wrong. Raises RunError for a newer one.

    Without `has_processes` it is known that none of its processes is alive here.
    """
    try:
        lock = directory.hold(run, "gptoss runs --repair", wait_s=0)
    except RunError:
        return []  # at work
    try:
        state, told = _readable(run)
        away = _is_elsewhere(run, state)
        if away:
            return [*told, away]
        if has_processes or _is_lost(state):
            told += _settle(run, state)
        told += _remove_leftovers(run)
        return told
    finally:
        os.close(lock)


def _repair_entry(entry: Path, at_work: Container[str]) -> list[str]:
    if entry.is_symlink() and not entry.exists():
        return [f"it is in {os.readlink(entry)}, which is not there; mount its disk, or remove {entry}"]
    try:
        if not entry.is_dir():
            return []
        run = RunDirectory(entry.resolve())
        if not run.state.exists() and not run.plan.exists():
            return _remove_carcass(run)
        return repair(run, has_processes=str(run.path) in at_work)
    except RunError as error:
        return [f"left as it is: {error.message} ({error.hint})"]
    except OSError as error:
        return [f"left as it is: {error.strerror or error} ({error.filename or entry})"]


def _remove_carcass(run: RunDirectory) -> list[str]:
    """Remove what a killed `gptoss run` had made before there was a plan; its name is then free again."""
    made = {run.attempts.name, run.settings.name}
    entries = list(run.path.iterdir())
    is_ours = run.attempts.is_dir() and all(e.name in made or _HALF_WRITTEN.fullmatch(e.name) for e in entries)
    is_old = time.time() - run.path.stat().st_mtime > MAKING_S
    if not is_ours or not is_old or any(run.attempts.iterdir()):
        return []
    shutil.rmtree(run.path)
    return ["its making was cut short before there was a plan; it is removed"]


def _readable(run: RunDirectory) -> tuple[State, list[str]]:
    """The state; a damaged or missing one is rebuilt from the attempts and written."""
    try:
        return run.read_state(), []
    except RunError as error:
        state = start.readable_state(run)
        damaged = run.state.with_name("state.json.damaged")
        if run.state.exists():
            os.replace(run.state, damaged)
        write_atomic(run.state, state.to_json())
        return state, [f"its state was rebuilt from its attempts: {error.message}"]


def _is_elsewhere(run: RunDirectory, state: State) -> str:
    """Why the run is none of this machine's business, or nothing."""
    if not state.status.is_live and state.status is not Status.PENDING:
        return ""
    _, last = run.newest_attempt()
    if last and side_scripts.may_be_queued(last):
        return f"Slurm carries it out; follow it with: gptoss run --resume {run.name}"
    if state.host != platform.node() and not _is_lost(state):
        return f"it runs on {state.host}" if state.status.is_live else f"{state.host} is about to start it"
    return ""


def _is_lost(state: State) -> bool:
    return state.observed().status is Status.LOST


def _settle(run: RunDirectory, state: State) -> list[str]:
    """End what is left of a run that nobody supervises, and say in its state that it stopped."""
    ended = start.end_remains(run, state)
    told = [f"{ended} of its processes still ran and were ended"] if ended else []
    if not _is_lost(state):
        return told
    message = f"its supervisor was lost during {state.step or 'the start'}; go on with: gptoss run --resume {run.name}"
    if state.step:
        state = state.with_step(state.step, status=Status.STOPPED, message="its supervisor was lost")
    state = replace(state, status=Status.STOPPED, ended=state.heartbeat, job=None, supervisor=None, starter=None,
                    message=message)  # fmt: skip
    write_atomic(run.state, state.to_json())
    run.append_event("repaired", message)
    return [*told, f"it was marked as running and is not: {message}"]


def _remove_leftovers(run: RunDirectory) -> list[str]:
    """Remove files and directories that a killed process was still writing."""
    told = []
    removed = 0
    for path in list(_leftovers(run)):
        final = path.with_name(path.name.removeprefix(".").removesuffix(".old"))
        if path.name.endswith(".old") and not final.exists():
            path.rename(final)
            told.append(f"{final.name} is back: it was being replaced")
            continue
        removed += 1
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return [*told, f"{removed} half-written files and directories were removed"] if removed else told


def _leftovers(run: RunDirectory) -> Iterator[Path]:
    places = [run.path, *(entry for entry in run.attempts.glob("*") if entry.is_dir())]
    for path in (path for place in places for path in place.glob(".*")):
        is_half = _HALF_WRITTEN.fullmatch(path.name) and path.is_file()
        if is_half or (path.is_dir() and path.name.endswith((".partial", ".old"))):
            yield path
