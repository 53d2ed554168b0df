"""`gptoss try`: ask the base and the tuned model of a run the same questions, side by side."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine import settings_file
from engine.cli import output
from engine.data.pool import environment
from engine.errors import ExitCode, RunError, SettingsError, StepFailed
from engine.finetune_settings import GOALS
from engine.run import start
from engine.run.directory import RunDirectory
from engine.settings import Settings

_LOG_LINES = 5


@dataclass(slots=True, kw_only=True)
class _Asked:
    """One question and what the models answered."""

    text: str
    expected: str
    answers: dict[str, str] = field(default_factory=dict)


def carry_out(arguments: argparse.Namespace) -> int:
    """Ask, show the answers as they come, and put them side by side."""
    run = start.find(arguments.run)
    settings = settings_file.load(run.settings)
    _check(run, settings, arguments)
    models = ["tuned"] if arguments.only_tuned else ["base", "tuned"]
    wanted = {
        "prompts": arguments.prompt,
        "count": arguments.count,
        "longest": arguments.max_tokens,
        "models": models,
    }
    asked: dict[int, _Asked] = {}
    for record in _records(run, settings, wanted):
        _take(record, asked)
        if not arguments.json:
            _show(record, asked)
    if arguments.json:
        output.print_json(
            [{"question": one.text, "expected": one.expected or None, **one.answers} for one in asked.values()]
        )
    else:
        print(output.clean("\n\n".join(_side_by_side(one, models) for one in asked.values())))
    return ExitCode.DONE


def _check(run: RunDirectory, settings: Settings, arguments: argparse.Namespace) -> None:
    if settings.training.goal not in GOALS:
        raise RunError(
            f"{run.name} is a training with the goal {settings.training.goal}, which teaches no answers",
            "try a run with the goal sft or lora",
        )
    for name, value in (("--count", arguments.count), ("--max-tokens", arguments.max_tokens)):
        if not 1 <= value <= 4096:
            raise SettingsError(f"{name} {value} is not between 1 and 4096", f"for example {name} 64")


def _records(run: RunDirectory, settings: Settings, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the process with the models says. Raises StepFailed, SettingsError."""
    python = settings.launch.python or sys.executable
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            [python, "-m", "engine.workers.try_answers", str(run.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment(),
            text=True,
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(wanted))
            process.stdin.close()
            for line in process.stdout:
                record: dict[str, Any] = json.loads(line)
                if "error" in record:
                    raise SettingsError(record["error"], record["hint"])
                yield record
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if code:
            log.seek(0)
            tail = "\n".join(log.read().splitlines()[-_LOG_LINES:])
            raise StepFailed(f"asking ended with return code {code}:\n{tail}", "look at: gptoss doctor")


def _take(record: dict[str, Any], asked: dict[int, _Asked]) -> None:
    if "text" in record:
        asked[record["question"]] = _Asked(text=record["text"], expected=record["expected"])
    elif "answer" in record:
        asked[record["question"]].answers[record["model"]] = record["answer"]


def _show(record: dict[str, Any], asked: dict[int, _Asked]) -> None:
    """The words as they come, on stderr."""
    if "loading" in record:
        output.say(f"loading the {record['loading']} model: {Path(record['path']).name}")
    elif "piece" in record:
        print(output.clean(record["piece"]), end="", file=sys.stderr, flush=True)
    elif "answer" in record:
        output.say(f"   [{record['model']}: {asked[record['question']].text}]")


def _side_by_side(asked: _Asked, models: list[str]) -> str:
    heads = {"base": "base model", "tuned": "tuned model"}
    columns = {heads[name]: asked.answers.get(name, "") for name in models}
    if asked.expected:
        columns["expected"] = asked.expected
    width = max(16, (shutil.get_terminal_size((80, 24)).columns - 2 * len(columns)) // len(columns))
    cells = [[name, "-" * len(name), *_wrapped(text, width)] for name, text in columns.items()]
    rows = max(map(len, cells))
    lines = ["  ".join((cell[row] if row < len(cell) else "").ljust(width) for cell in cells) for row in range(rows)]
    return "\n".join([f"> {asked.text}", *(line.rstrip() for line in lines)])


def _wrapped(text: str, width: int) -> list[str]:
    return [part for line in text.splitlines() for part in textwrap.wrap(line, width) or [""]] or ["(nothing)"]
