"""The prepare step of fine-tuning: chats into rows of tokens with a mask of those that are learnt."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from engine.data import harmony, inspect, job, records, sources, vocabulary
from engine.data.harmony import Style
from engine.data.manifest import Manifest
from engine.data.packed_file import PackRules
from engine.data.prepare import prepare
from engine.data.request import Request, Status
from engine.data.shape import TEXT, Shape, Unusable
from engine.data.sources import SourceFile
from engine.data.vocabulary import Vocabulary
from engine.errors import SettingsError
from engine.finetune_settings import GOALS
from engine.settings import Settings
from engine.workers import finetune_template, finetune_toy, tiny
from engine.workers.files import partial, publish
from engine.workers.report import Report
from engine.workers.source import hugging_face_source, is_offline, load_config

_TOKENIZER_CHATS = 500
"""Enough to learn 240 merges from."""
_HEAD_STD = 0.3
"""Spread of the tiny model's output weights for the goal lora, which cannot change them: with the usual one
not even a perfect hidden state could make one token much likelier than the others."""


def is_wanted(settings: Settings) -> bool:
    """True when the run learns from chats."""
    return settings.training.goal in GOALS


def style_of(settings: Settings) -> Style:
    """What is added to every chat; without a date, so that the same settings give the same tokens."""
    return Style(effort=settings.finetune.effort)


def work(report: Report) -> Mapping[str, Any]:
    """Fill `data/` and, for the rehearsal, `model/`; a second run replaces both. Raises SettingsError."""
    settings = report.settings
    if is_offline(settings):
        os.environ["HF_HUB_OFFLINE"] = "1"
    found, shape = _chats(report)
    if settings.model.name == "tiny":
        _make_tiny(report, found, shape)
    words = vocabulary.read(vocabulary.find(_tokenizer(report)))
    rows = int(load_config(report).vocab_size)
    vocabulary.check_fits(words, rows, needs_gpt_oss=False, is_forced=False)
    report.phase("tokenising the chats")
    made = prepare(_request(report, found, shape, words), lambda status: _tell(report, status))
    _warn(report, made)
    return _facts(settings, made)


def _chats(report: Report) -> tuple[list[SourceFile], Shape]:
    data = report.settings.data
    if data.source == "sample":
        path = report.run.path / "toy-chats.jsonl"
        finetune_toy.write(path)
    elif data.source == "chat":
        path = report.user_path(data.path)
    else:
        raise SettingsError(
            f"data.source: the goal {report.settings.training.goal} learns from chats, and {data.source} has none",
            "set data.source to chat and data.path to your chats, or training.goal to continue",
        )
    found = sources.find(str(path))
    shape = inspect.shape_of(found)
    if shape.kind == TEXT:
        raise SettingsError(
            f"data.path: {path} holds text in {shape.column!r} and no chats",
            'a chat is {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}, or a prompt with its answer',
        )
    return found, shape


def _tokenizer(report: Report) -> str:
    chosen = report.settings.data.tokenizer
    return str(report.user_path(chosen)) if chosen else hugging_face_source(report)


def _make_tiny(report: Report, found: Iterable[SourceFile], shape: Shape) -> None:
    from transformers import AutoTokenizer

    settings = report.settings
    report.phase("making the tiny model")
    made = partial(report.run.model)
    if settings.data.tokenizer:
        directory = report.user_path(settings.data.tokenizer)
    else:
        directory = made
        _learn_tokenizer(found, shape, style_of(settings), directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    spread = {"head_std": _HEAD_STD} if settings.training.goal == "lora" else {}
    tiny.make_model(made, tokenizer, settings.training.precision, settings.training.seed, **spread)
    publish(made, report.run.model)


def _learn_tokenizer(found: Iterable[SourceFile], shape: Shape, style: Style, directory: Path) -> None:
    texts = []
    for record in islice((one for file in found for one in records.peek(file, _TOKENIZER_CHATS)), _TOKENIZER_CHATS):
        try:
            pieces = harmony.render(shape.messages(record), style)
        except Unusable:
            continue  # the tokenising itself says which chat and why
        texts.append("\n".join(piece.text for piece in pieces if not piece.is_control))
    tiny.train_tokenizer(texts, directory, harmony.CONTROL_TOKENS, harmony.RETURN)
    (directory / finetune_template.FILE).write_text(finetune_template.text(style), encoding="utf-8")


def _request(report: Report, found: list[SourceFile], shape: Shape, words: Vocabulary) -> Request:
    settings, layout = report.settings, report.plan.layout
    is_packed = report.plan.device == "gpu"
    # Context and sequence parallelism cut each chat into equal parts (bridge/data/packing/gpt_sft.py).
    multiple = math.lcm(2 * layout.cp if layout.cp > 1 else 1, layout.cp * layout.tp)
    return Request(
        files=tuple(found),
        shape=shape,
        vocabulary=words,
        output=report.run.data,
        source="chat",
        validation_percent=settings.data.validation_percent,
        on_bad_record=job.SKIP if settings.finetune.skip_bad_chats else job.STOP,
        limit_bytes=int(settings.data.max_megabytes * 1e6),
        style=style_of(settings),
        packing=PackRules(
            sequence_length=settings.training.sequence_length,
            is_packed=is_packed,
            multiple=multiple if is_packed else 1,
            padding_id=words.end_of_answer if words.end_of_answer >= 0 else words.end_of_document,
            seed=settings.training.seed,
        ),
    )


def _tell(report: Report, status: Status) -> None:
    if status.total_bytes:
        report.progress(f"{status.documents:,} chats tokenised", status.done_bytes, status.total_bytes, "bytes")


def _warn(report: Report, made: Manifest) -> None:
    length = report.settings.training.sequence_length
    counted = {
        f"{made.rejected:,} chats could not be used and were left out": made.rejected,
        f"{made.shortened:,} chats were longer than {length:,} tokens and lost their oldest exchanges": made.shortened,
        f"{made.too_long:,} chats were left out: their last exchange is longer than {length:,} tokens": made.too_long,
    }
    for sentence in (*made.notices, *(text for text, count in counted.items() if count)):
        report.event("warning", sentence)


def _facts(settings: Settings, made: Manifest) -> dict[str, Any]:
    packing = dict(made.packing)
    rows = packing["train"]["rows"]
    samples = settings.training.iterations * settings.training.global_batch
    return {
        "chats": made.documents,
        "rows": rows,
        "train_tokens": made.train_tokens,
        "trained_tokens": made.trained_tokens,
        "validation_tokens": made.validation_tokens,
        "vocabulary_size": made.vocabulary_size,
        "packing_efficiency": packing["train"]["efficiency"],
        "epochs": round(samples / rows, 3),
    }
