"""What the prepare step does otherwise for fine-tuning: chats, and rows with a mask of the tokens that are learnt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from engine import settings_file
from engine.data import chosen, harmony, records, sources, toy_chats
from engine.data.harmony import Style
from engine.data.manifest import Manifest
from engine.data.packed_file import PackRules
from engine.data.request import Request
from engine.data.shape import Shape, Unusable
from engine.data.sources import SourceFile
from engine.errors import SettingsError
from engine.plan import finetune as plan
from engine.settings import Settings
from engine.workers import finetune_template, tiny
from engine.workers.report import Report

_TOKENIZER_CHATS = 500
"""Enough to learn 240 merges from."""
_HEAD_STD = 0.3
"""Spread of the tiny model's output weights for the goal lora, which cannot change them: with the usual one
not even a perfect hidden state could make one token much likelier than the others."""


def style_of(settings: Settings) -> Style:
    """What is added to every chat; without a date, so that the same settings give the same tokens."""
    return Style(effort=settings.finetune.effort)


def files(report: Report) -> list[SourceFile]:
    """The files with the chats; toy chats are written first. Raises SettingsError for a source that has none."""
    source = report.settings.data.source
    if source == "chat":
        return chosen.files(report.settings, report.started_in)
    if source != "sample":
        raise SettingsError(
            f"data.source: the goal {report.settings.training.goal} learns from chats, and {source} has none",
            "set data.source to chat and data.path to your chats, or training.goal to continue",
        )
    path = report.run.path / "toy-chats.jsonl"
    if not path.exists():
        toy_chats.write(path)
    return sources.find(str(path))


def learn_tokenizer(report: Report, found: Iterable[SourceFile], shape: Shape, directory: Path) -> Path:
    """A small tokenizer with Harmony's control tokens and its template, in `directory`."""
    style = style_of(report.settings)
    texts = []
    for record in islice((one for file in found for one in records.peek(file, _TOKENIZER_CHATS)), _TOKENIZER_CHATS):
        try:
            pieces = harmony.render(shape.messages(record), style)
        except Unusable:
            continue  # the tokenising itself says which chat and why
        texts.append("\n".join(piece.text for piece in pieces if not piece.is_control))
    tiny.train_tokenizer(texts, directory, harmony.CONTROL_TOKENS, harmony.RETURN)
    (directory / finetune_template.FILE).write_text(finetune_template.text(style), encoding="utf-8")
    return directory


def model_options(settings: Settings) -> dict[str, float]:
    """What the tiny model needs otherwise for the goal."""
    return {"head_std": _HEAD_STD} if settings.training.goal == "lora" else {}


def completed(request: Request, report: Report) -> Request:
    """`request` with the rules for chats."""
    settings, layout, words = report.settings, report.plan.layout, request.vocabulary
    is_packed = report.plan.device == "gpu"
    # Context and sequence parallelism cut each chat into equal parts (bridge/data/packing/gpt_sft.py).
    multiple = math.lcm(2 * layout.cp if layout.cp > 1 else 1, layout.cp * layout.tp)
    return dataclasses.replace(
        request,
        source="chat",
        style=style_of(settings),
        packing=PackRules(
            sequence_length=settings.training.sequence_length,
            is_packed=is_packed,
            multiple=multiple if is_packed else 1,
            padding_id=words.end_of_answer if words.end_of_answer >= 0 else words.end_of_document,
            seed=settings.training.seed,
        ),
    )


def finished(report: Report, made: Manifest) -> dict[str, Any]:
    """The step's result. With `finetune.epochs` the run's settings are given their iterations first."""
    packing = dict(made.packing)
    rows = packing["train"]["rows"]
    if report.settings.finetune.epochs:
        _set_iterations(report, rows)
    training = report.settings.training
    samples = training.iterations * training.global_batch
    return {
        "chats": made.documents,
        "rows": rows,
        "train_tokens": made.train_tokens,
        "trained_tokens": made.trained_tokens,
        "validation_tokens": made.validation_tokens,
        "vocabulary_size": made.vocabulary_size,
        "packing_efficiency": packing["train"]["efficiency"],
        "iterations": training.iterations,
        "epochs": round(samples / rows, 3),
    }


def _set_iterations(report: Report, rows: int) -> None:
    """Write what the epochs amount to into the run's settings, which all later steps and every monitor read."""
    iterations = plan.iterations_of(report.settings, rows, report.plan.device)
    report.settings = report.settings.with_values({"training.iterations": iterations})
    settings_file.save(report.settings, report.run.settings)
    epochs = report.settings.finetune.epochs
    batch = report.settings.training.global_batch
    report.event("note", f"{epochs:g} epochs of {rows:,} rows in batches of {batch:,} are {iterations:,} iterations")
