"""The verb `diagnose`: why a run failed, what to change, and going on with the change."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from engine import settings_file
from engine.cli import output
from engine.errors import ExitCode, NotFoundError, SettingsError
from engine.monitor.diagnose import Diagnosis
from engine.proposals import as_options
from engine.run import start
from engine.run.cause import cause_of
from engine.run.directory import RunDirectory
from engine.run.state import Status


def diagnose(arguments: argparse.Namespace) -> int:
    """Print the cause of a failure; with --apply, change the settings as proposed and resume."""
    run = start.find(arguments.run)
    found = cause_of(run)
    if found is None:
        state = run.read_state().observed()
        hint = state.message if state.status is Status.LOST else f"look at it: gptoss attach {run.name}"
        raise NotFoundError(f"{run.name} is {state.status} and shows no cause of a failure", hint)
    edit = changes(run, found)
    if arguments.json:
        command = _command(run, edit)
        output.print_json({**found.to_json(), "changes": edit, "command": command, "applied": arguments.apply})
    else:
        print(output.clean("\n".join(_lines(found, edit, _command(run, edit)))))
    if not arguments.apply:
        return ExitCode.DONE
    if not edit and not found.is_curable:
        hint = f"{found.next_step}; then: gptoss run --resume {shlex.quote(run.name)}"
        raise SettingsError("no change is proposed, and the same start would fail again", hint)
    start.resume(run, {one["setting"]: one["new"] for one in edit})
    output.say(f"{run.name} goes on; watch it with: gptoss attach {run.name}")
    return ExitCode.DONE


def changes(run: RunDirectory, found: Diagnosis) -> list[dict[str, Any]]:
    """The proposed edit as setting, old and new value."""
    settings = settings_file.load(run.settings)
    return [{"setting": key, "old": settings.value(key), "new": value} for key, value in found.edit.items()]


def _command(run: RunDirectory, edit: list[dict[str, Any]]) -> str:
    """What makes the change and resumes, to be pasted into a shell; empty without a change."""
    if not edit:
        return ""
    return f"gptoss run --resume {shlex.quote(run.name)} {as_options({one['setting']: one['new'] for one in edit})}"


def _lines(found: Diagnosis, edit: list[dict[str, Any]], command: str) -> list[str]:
    lines = [found.sentence, f"  why       {found.why}", f"  next      {found.next_step}"]
    lines += [f"  change    {one['setting']}: {_shown(one['old'])} -> {_shown(one['new'])}" for one in edit]
    lines += [f"  command   {command}"] if command else []
    again = "may well succeed" if found.is_curable else "would fail again"
    lines += [f"  evidence  {found.evidence.strip()}", f"  in        {found.log}", f"  the same start {again}"]
    return lines


def _shown(value: object) -> str:
    return '""' if value == "" else str(value)
