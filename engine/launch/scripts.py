"""The exported scripts. Made of the launchers' own commands: what is exported is what is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.launch.command import Command, Quoter, head


def all_steps(commands: Mapping[str, Command], reasons: Mapping[str, str], at: Path, notes: Sequence[str] = ()) -> str:
    """Every step in order, each in a subshell of its own; a step that fails ends the script."""
    first = next(iter(commands.values()))
    common = [line for line in first.setup() if all(line in command.setup() for command in commands.values())]
    lines = [
        *head(f"The steps of the run {first.run.name}, as gptoss carries them out one by one.", at, first.run),
        *(f"# {note}" for note in notes),
        *_choice(at.name, tuple(commands)),
        *_last_words(at.name),
        *common,
    ]
    for number, (name, command) in enumerate(commands.items(), start=1):
        lines += ["", f"# {number}. {reasons.get(name) or command.title}"]
        lines.append(f"step={name} logs={Quoter(command.run)(str(command.makes[0]))}")
        body = _body(command, common)
        lines += [f"if is_wanted {name}; then (", *body, "); fi"] if len(commands) > 1 else ["(", *body, ")"]
    return "\n".join(lines) + "\n"


def _choice(name: str, steps: Sequence[str]) -> list[str]:
    """The lines that read which steps are wanted; one that there is not must not look like success."""
    lines = [
        'for word in "$@"; do',
        f"  case $word in {' | '.join(steps)}) ;;",
        f"    *) echo \"{name}: there is no step '$word' here; there are: {' '.join(steps)}\" >&2; exit 2 ;;",
        "  esac",
        "done",
    ]
    if len(steps) == 1:
        return lines
    return [
        f"# Name steps to carry out these alone: {name} {' '.join(steps)}",
        *lines,
        'wanted=("$@")',
        'is_wanted() { [ "${#wanted[@]}" -eq 0 ] || [[ " ${wanted[*]} " == *" $1 "* ]]; }',
    ]


def _last_words(name: str) -> list[str]:
    """The lines that name the step where the script ended, whatever ended it."""
    return [
        'step="the set-up" logs="$RUN_DIR"',
        f'on_end() {{ [ "$1" -eq 0 ] || echo "{name}: $step ended with exit code $1; its logs are in $logs" >&2; }}',
        "trap 'on_end \"$?\"' EXIT",
    ]


def _body(command: Command, common: list[str]) -> list[str]:
    lines = [line for line in command.setup() if line not in common]
    lines += [*command.before, command.line(), *command.after]
    if not command.reports:
        # What is not our worker keeps no log of its own.
        log = Quoter(command.run)(str(command.makes[0] / "launcher.log"))
        lines[-1] += f" 2>&1 | tee -a {log}"
    return ["  " + line.replace("\n", "\n  ") for line in lines]
