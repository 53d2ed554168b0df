"""The prepare step: text into a Megatron dataset; for the rehearsal also a model and a tokenizer."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from engine.errors import SettingsError
from engine.settings import DataSettings
from engine.workers import corpus, finetune_chats, tiny
from engine.workers.dataset import Manifest, Writer, check_prefix
from engine.workers.files import partial, publish
from engine.workers.report import Report, run_worker
from engine.workers.source import is_offline, load_config, load_tokenizer

_TOKENIZER_DOCUMENTS = 200
"""Enough text to learn 254 merges from."""
_BATCH = 64
_BYTES_PER_MB = 1_000_000


def work(report: Report) -> Mapping[str, Any]:
    """Fill `data/` and, for the rehearsal, `model/`; a second run replaces both."""
    settings = report.settings
    if finetune_chats.is_wanted(settings):
        return finetune_chats.work(report)
    if settings.data.source == "chat":
        raise SettingsError("data.source: chats are for fine-tuning", "set training.goal to sft or lora")
    if is_offline(settings):
        os.environ["HF_HUB_OFFLINE"] = "1"
    made = partial(report.run.data)
    made.mkdir()
    tokenizer = _tokenizer(report, made / "tokenizer")
    if settings.model.name == "tiny":
        report.phase("making the tiny model")
        model = partial(report.run.model)
        tiny.make_model(model, tokenizer, settings.training.precision, settings.training.seed)
        publish(model, report.run.model)
    manifest = _write_data(report, made, tokenizer)
    manifest.save(made)
    publish(made, report.run.data)
    return {
        "documents": manifest.documents,
        "train_tokens": manifest.train_tokens,
        "validation_tokens": manifest.validation_tokens,
        "vocabulary_size": manifest.vocabulary_size,
    }


def _tokenizer(report: Report, directory: Path) -> Any:
    """The run's tokenizer, also saved to `directory`; None when nothing has to be tokenised."""
    from transformers import AutoTokenizer

    settings = report.settings
    if settings.data.tokenizer:
        report.phase("loading the tokenizer")
        chosen = report.user_path(settings.data.tokenizer)
        if not (chosen / "tokenizer.json").is_file():
            raise SettingsError(
                f"data.tokenizer: there is no tokenizer.json in {chosen}", "give a Hugging Face tokenizer"
            )
        tokenizer = AutoTokenizer.from_pretrained(chosen)
    elif settings.model.name == "tiny":
        report.phase("learning the tokenizer")
        data = settings.data if settings.data.source == "text" else DataSettings(source="sample")
        texts = corpus.documents(data, report.user_path(data.path))
        tiny.train_tokenizer(islice(texts, _TOKENIZER_DOCUMENTS), directory)
        return AutoTokenizer.from_pretrained(directory)
    elif settings.data.source in ("mock", "prefix"):
        return None
    else:
        report.phase("loading the tokenizer")
        tokenizer = load_tokenizer(report)
    tokenizer.save_pretrained(directory)
    return tokenizer


def _write_data(report: Report, directory: Path, tokenizer: Any) -> Manifest:
    data = report.settings.data
    manifest = Manifest(
        source=data.source,
        vocabulary_size=len(tokenizer) if tokenizer else int(load_config(report).vocab_size),
        tokenizer_hash=_hash(directory / "tokenizer" / "tokenizer.json"),
    )
    if data.source == "mock":
        return manifest
    if data.source == "prefix":
        report.phase("checking the dataset")
        prefix = report.user_path(data.path)
        known = int(load_config(report).vocab_size)
        documents, tokens, held_out_tokens = check_prefix(prefix, known, data.validation_percent)
        return replace(
            manifest,
            prefix=str(prefix),
            documents=documents,
            train_tokens=tokens,
            validation_tokens=held_out_tokens,
        )
    report.phase("tokenising the text")
    written, held_out = _tokenise(report, directory, tokenizer)
    return replace(
        manifest,
        documents=written.documents + held_out.documents,
        train_tokens=written.tokens,
        validation_tokens=held_out.tokens,
    )


def _tokenise(report: Report, directory: Path, tokenizer: Any) -> tuple[Writer, Writer]:
    share = report.settings.data.validation_percent / 100
    train, validation, lowest = _write_split(report, directory, tokenizer, share)
    if not (train.documents and validation.documents):
        if len(lowest) < 2:
            raise SettingsError("data.path: all documents are the same", "give different ones")
        # So few documents that one side got none: the validation gets the nearest one.
        train, validation, _ = _write_split(report, directory, tokenizer, lowest[1])
    train.finish()
    validation.finish()
    return train, validation


def _write_split(
    report: Report, directory: Path, tokenizer: Any, threshold: float
) -> tuple[Writer, Writer, list[float]]:
    """Write both sides; also return the two lowest shares that were met."""
    data = report.settings.data
    total = corpus.total_bytes(data, report.user_path(data.path))
    end = _end_of_document(tokenizer)
    train = Writer(directory / "train", tokenizer, end)
    validation = Writer(directory / "validation", tokenizer, end)
    lowest: list[float] = []
    done = 0
    for batch in _batches(report):
        shares = [corpus.share(text) for text in batch]
        lowest = sorted({*lowest, *shares})[:2]
        validation.add(text for text, share in zip(batch, shares, strict=True) if share < threshold)
        train.add(text for text, share in zip(batch, shares, strict=True) if share >= threshold)
        # The total is that of the files, which may hold a little less or more text.
        done = min(done + sum(len(text.encode()) for text in batch), total - 1)
        report.progress(f"{done / _BYTES_PER_MB:.1f} MB of text tokenised", done, total, "bytes")
    report.progress(f"{train.documents + validation.documents:,} documents tokenised", total, total, "bytes")
    return train, validation, lowest


def _batches(report: Report) -> Iterator[list[str]]:
    data = report.settings.data
    texts = corpus.documents(data, report.user_path(data.path))
    batch = list(islice(texts, _BATCH))
    if len(batch) == 1:
        batch = list(corpus.cut(batch[0], data.validation_percent))
    while batch:
        yield batch
        batch = list(islice(texts, _BATCH))


def _end_of_document(tokenizer: Any) -> int:
    """gpt-oss ends a document with <|endoftext|>; its eos, <|return|>, ends an answer in a chat."""
    known: int | None = tokenizer.get_vocab().get(tiny.END_OF_TEXT)
    return known if known is not None else int(tokenizer.eos_token_id)


def _hash(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() if file.exists() else ""


if __name__ == "__main__":
    sys.exit(run_worker("prepare", work, sys.argv[1:]))
