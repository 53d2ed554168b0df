"""Asks the base and the tuned model of a run the same questions: a process that holds the models, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from engine import settings_file
from engine.data.pool import environment
from engine.errors import RunError, SettingsError, StepFailed
from engine.finetune_settings import GOALS
from engine.run import validation
from engine.run.directory import RunDirectory

MODELS = ("base", "tuned")
_LOG_LINES = 5

type Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked, and of which models."""

    prompts: tuple[str, ...] = ()
    """Empty: held-out chats."""
    count: int = 4
    """How many held-out chats."""
    longest: int = 48
    """Most tokens in an answer."""
    models: tuple[str, ...] = MODELS


@dataclass(slots=True, kw_only=True)
class Asked:
    """One question and what the models have answered so far."""

    text: str
    expected: str = ""
    answers: dict[str, str] = field(default_factory=dict)


class Asking:
    """One process with the models. Iterating gives its records as they come; `end` may be called from anywhere."""

    def __init__(self, run: RunDirectory, wanted: Wanted) -> None:
        """Raises RunError for a run that has nothing to compare."""
        settings = settings_file.load(run.settings)
        if settings.training.goal not in GOALS:
            raise RunError(
                f"{run.name} is a training with the goal {settings.training.goal}, which teaches no answers",
                "try a run with the goal sft or lora",
            )
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [settings.launch.python or sys.executable, "-m", "engine.workers.try_answers", str(run.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(),
            text=True,
        )
        self._is_ended = False
        question = {"prompts": wanted.prompts, "count": wanted.count, "longest": wanted.longest,
                    "models": wanted.models}  # fmt: skip
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question))
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it ended at once; its return code and its last words say why

    def __iter__(self) -> Iterator[Record]:
        """What the process says. Raises SettingsError and StepFailed, but not after `end`."""
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                record: Record = json.loads(line)
                if "error" in record:
                    raise SettingsError(record["error"], record["hint"])
                yield record
            code = self._process.wait()
            if code and not self._is_ended:
                self._log.seek(0)
                tail = "\n".join(self._log.read().splitlines()[-_LOG_LINES:])
                raise StepFailed(f"asking ended with return code {code}:\n{tail}", "look at: gptoss doctor")
        finally:
            self.end()
            self._process.wait()
            self._process.stdout.close()
            self._log.close()

    def end(self) -> None:
        """End the process."""
        self._is_ended = True
        self._process.kill()


def take(record: Record, asked: dict[int, Asked]) -> None:
    """Add what a record says to the questions, by their numbers."""
    if "text" in record:
        asked[record["question"]] = Asked(text=record["text"], expected=record["expected"])
    elif "piece" in record:
        answers = asked[record["question"]].answers
        answers[record["model"]] = answers.get(record["model"], "") + record["piece"]
    elif "answer" in record:
        asked[record["question"]].answers[record["model"]] = record["answer"]


def held_out_loss(run: RunDirectory) -> dict[str, float | int]:
    """The validation loss before the training and of what was exported, as far as they are on record."""
    known = validation.losses(run)
    at = validation.to_export(run, settings_file.load(run.settings))
    found: dict[str, float | int] = {}
    if 0 in known:
        found["before"] = known[0]
    if at in known:
        found |= {"after": known[at], "iteration": at}
    return found


def loss_sentence(told: dict[str, float | int]) -> str:
    """`held_out_loss` in words; empty when nothing is known."""
    before = f"{told['before']:.4f} before the training" if "before" in told else ""
    after = f"{told['after']:.4f} after it (iteration {told['iteration']})" if "after" in told else ""
    return "held-out loss: " + ", ".join(filter(None, (before, after))) if told else ""
