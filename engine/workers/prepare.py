"""The prepare step: text or chats into what Megatron reads; for a rehearsal also a model and a tokenizer."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.data import chosen, indexed, records, sources, vocabulary
from engine.data.manifest import Manifest
from engine.data.prepare import prepare
from engine.data.request import Request, Status
from engine.data.shape import Shape
from engine.data.sources import SourceFile
from engine.workers import finetune_chats, tiny
from engine.workers.files import partial, publish
from engine.workers.report import Report, run_worker
from engine.workers.source import hugging_face_source, is_offline, load_config

_TOKENIZER_BYTES = 300_000
"""Enough text to learn 254 merges from."""
_BYTES_PER_MB = 1_000_000


def work(report: Report) -> Mapping[str, Any]:
    """Fill `data/` and, for the rehearsal, `model/`. Goes on where a killed attempt was; raises EngineError."""
    settings = report.settings
    if is_offline(settings):
        os.environ["HF_HUB_OFFLINE"] = "1"
    if chosen.learns_from_chats(settings):
        found = finetune_chats.files(report)
    elif settings.data.source in ("mock", "prefix"):
        return _without_text(report)
    else:
        found = chosen.files(settings, report.started_in)
    shape = chosen.shape(settings, found)
    if settings.model.name == "tiny":
        _make_tiny(report, found, shape)
    report.phase("reading the tokenizer")
    words = vocabulary.read(vocabulary.find(_tokenizer(report)))
    vocabulary.check_fits(
        words,
        int(load_config(report).vocab_size),
        needs_gpt_oss=settings.model.name.startswith("gpt-oss"),
        is_forced=settings.data.foreign_tokenizer == "allow",
    )
    request = Request(
        files=tuple(found),
        shape=shape,
        vocabulary=words,
        output=report.run.data,
        source=settings.data.source,
        validation_percent=settings.data.validation_percent,
        on_bad_record=settings.data.bad_records,
        limit_bytes=int(settings.data.max_megabytes * _BYTES_PER_MB),
        # Training opens the result with Megatron's reader anyway; importing that here takes longer than most texts.
        reads_back=False,
    )
    if chosen.learns_from_chats(settings):
        request = finetune_chats.completed(request, report)
    report.phase("tokenising")
    made = prepare(request, lambda status: _tell(report, status))
    _warn(report, made)
    return finetune_chats.finished(report, made) if request.packing else _facts(made)


def _without_text(report: Report) -> Mapping[str, Any]:
    """For invented tokens and for a pair that is ready: nothing is tokenised."""
    settings = report.settings
    made = partial(report.run.data)
    made.mkdir()
    if settings.model.name == "tiny":
        # It has to be able to read something; it never saw the data's text.
        _make_tiny(report, sources.sample(), Shape())
    if settings.model.name == "tiny" or settings.data.tokenizer:
        vocabulary.copy(vocabulary.find(_tokenizer(report)), made / "tokenizer")
    rows = int(load_config(report).vocab_size)
    manifest = Manifest(source=settings.data.source, vocabulary_size=rows)
    if settings.data.source == "prefix":
        report.phase("checking the dataset")
        manifest = _checked_pair(report, manifest, rows)
    manifest.save(made)
    publish(made, report.run.data)
    return _facts(manifest)


def _checked_pair(report: Report, manifest: Manifest, rows: int) -> Manifest:
    prefix, percent = report.user_path(report.settings.data.path), report.settings.data.validation_percent
    facts = indexed.check(prefix, rows)
    trained = indexed.tokens_before(prefix, indexed.first_held_out(facts.documents, percent))
    return dataclasses.replace(
        manifest,
        prefix=str(prefix),
        documents=facts.documents,
        train_tokens=trained,
        validation_tokens=facts.tokens - trained,
        token_type=facts.token_type,
    )


def _tokenizer(report: Report) -> str:
    chosen_one = report.settings.data.tokenizer
    return str(report.user_path(chosen_one)) if chosen_one else hugging_face_source(report)


def _make_tiny(report: Report, found: list[SourceFile], shape: Shape) -> None:
    """The rehearsal's model, with the chosen tokenizer or one learnt from the data; the same settings, the same one."""
    from transformers import AutoTokenizer

    settings = report.settings
    made = partial(report.run.model)
    if settings.data.tokenizer:
        directory = Path(vocabulary.read(vocabulary.find(_tokenizer(report))).path).parent
    elif chosen.learns_from_chats(settings):
        report.phase("learning the tokenizer")
        directory = finetune_chats.learn_tokenizer(report, found, shape, made)
    else:
        report.phase("learning the tokenizer")
        directory = made
        tiny.train_tokenizer(_texts(found, shape), directory)
    report.phase("making the tiny model")
    training = settings.training
    tiny.make_model(
        made,
        AutoTokenizer.from_pretrained(directory),
        training.precision,
        training.seed,
        **finetune_chats.model_options(settings),
    )
    publish(made, report.run.model)


def _texts(found: list[SourceFile], shape: Shape) -> Iterator[str]:
    """The first texts, those that cannot be used left out: the tokenising itself says which and why."""
    seen = 0
    for file in found:
        for _, text in records.documents(file, shape):
            if isinstance(text, bytes) and text:
                yield text[: _TOKENIZER_BYTES - seen].decode(errors="ignore")
                seen += len(text)
            if seen >= _TOKENIZER_BYTES:
                return


def _tell(report: Report, status: Status) -> None:
    if not status.total_bytes:
        report.phase(status.phase)
        return
    if status.documents:
        said = f"{status.documents:,} documents ({status.documents_per_s:,.0f}/s), {status.tokens:,} tokens"
        said += f" ({status.tokens_per_s:,.0f}/s)"
        report.progress(said, status.done_bytes, status.total_bytes, "bytes")


def _warn(report: Report, made: Manifest) -> None:
    length = report.settings.training.sequence_length
    counted = {
        f"{made.rejected:,} records could not be used and were left out: see data/rejected.jsonl": made.rejected,
        f"{made.shortened:,} chats were longer than {length:,} tokens and lost their oldest exchanges": made.shortened,
        f"{made.too_long:,} chats were left out: their last exchange is longer than {length:,} tokens": made.too_long,
    }
    for sentence in (*made.notices, *(text for text, count in counted.items() if count)):
        report.event("warning", sentence)


def _facts(made: Manifest) -> dict[str, Any]:
    return {
        "documents": made.documents,
        "train_tokens": made.train_tokens,
        "validation_tokens": made.validation_tokens,
        "vocabulary_size": made.vocabulary_size,
    }


if __name__ == "__main__":
    sys.exit(run_worker("prepare", work, sys.argv[1:]))
