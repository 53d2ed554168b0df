"""`gptoss try`: ask the base and the tuned model of a run the same questions, side by side."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from pathlib import Path

from engine.cli import output
from engine.errors import ExitCode
from engine.run import asking, start
from engine.run.asking import Asked, Asking, Record, Wanted


def carry_out(arguments: argparse.Namespace) -> int:
    """Ask, show the answers as they come, and put them side by side."""
    run = start.find(arguments.run)
    models = ("tuned",) if arguments.only_tuned else asking.MODELS
    wanted = Wanted(
        prompts=tuple(arguments.prompt or ()),
        count=arguments.count,
        longest=arguments.max_tokens,
        models=models,
    )
    asked: dict[int, Asked] = {}
    for record in Asking(run, wanted):
        asking.take(record, asked)
        if not arguments.json:
            _show(record, asked)
    loss = asking.held_out_loss(run)
    if arguments.json:
        answers = [{"question": one.text, "expected": one.expected or None, **one.answers} for one in asked.values()]
        output.print_json({"held_out_loss": loss, "answers": answers})
    else:
        parts = [*(_side_by_side(one, models) for one in asked.values()), asking.loss_sentence(loss)]
        print(output.clean("\n\n".join(filter(None, parts))))
    return ExitCode.DONE


def _show(record: Record, asked: dict[int, Asked]) -> None:
    """The words as they come, on stderr."""
    if "loading" in record:
        output.say(f"loading the {record['loading']} model: {Path(record['path']).name}")
    elif "piece" in record:
        print(output.clean(record["piece"]), end="", file=sys.stderr, flush=True)
    elif "answer" in record:
        output.say(f"   [{record['model']}: {asked[record['question']].text}]")


def _side_by_side(asked: Asked, models: tuple[str, ...]) -> str:
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
