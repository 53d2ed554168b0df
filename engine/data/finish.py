"""From merged tokens to a directory that Megatron reads: indices or rows, tokenizer, manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.data import indexed, manifest, optional, packed_file, vocabulary
from engine.data.job import SIDES, TRAIN, VALIDATION
from engine.data.manifest import Manifest
from engine.data.merge import JOURNAL, Merger
from engine.data.request import Request

_PACKAGES = ("gigatoken", "tokenizers", "numpy", "pyarrow", "megatron-core")


def write(request: Request, merger: Merger, work: Path) -> dict[str, Any]:
    """Write what Megatron reads beside the tokens; return the facts about the packing. Raises OSError."""
    sides = [side for side in SIDES if merger.current.counts.documents[side]]
    vocabulary.copy(Path(request.vocabulary.path), work / "tokenizer")
    if request.packing is None:
        for side in sides:
            indexed.write_index(work / side, merger.file(side, ".len"), request.token_type)
        return {}
    facts: dict[str, Any] = {}
    for side in sides:
        files = packed_file.Chats(
            tokens=merger.file(side, ".bin"),
            masks=merger.file(side, ".mask"),
            lengths=merger.file(side, ".len"),
        )
        facts[side] = packed_file.write(work / f"{side}.idx.parquet", files, request.packing)
        files.tokens.unlink()
    rules = request.packing
    lines = [packed_file.metadata(one, rules.sequence_length) for one in facts.values()]
    (work / "packing.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    return {
        "sequence_length": rules.sequence_length,
        "is_packed": rules.is_packed,
        "multiple": rules.multiple,
        **facts,
    }


def describe(
    request: Request, merger: Merger, encoder: str, notices: list[str], packing: Mapping[str, Any]
) -> Manifest:
    """The manifest of what was written."""
    now, words = merger.current, request.vocabulary
    counts = now.counts
    if merger.resumed_units:
        notices = [
            *notices,
            f"it went on after {merger.resumed_units} parts that an earlier attempt had made",
        ]
    return Manifest(
        source=request.source,
        identity=request.identity(),
        documents=sum(counts.documents.values()),
        train_documents=counts.documents[TRAIN],
        train_tokens=counts.tokens[TRAIN],
        validation_tokens=counts.tokens[VALIDATION],
        trained_tokens=counts.trained[TRAIN],
        vocabulary_size=words.size,
        token_type=request.token_type,
        end_of_document=words.end_of_document,
        tokenizer_hash=words.sha256,
        encoder=encoder,
        columns=request.shape.columns,
        validation_share=request.validation_percent / 100,
        text_bytes=counts.text_bytes,
        empty=counts.empty,
        rejected=counts.rejected,
        with_control_tokens=counts.with_control_tokens,
        shortened=counts.shortened,
        too_long=counts.too_long,
        packing=packing,
        sources=manifest.facts_of(list(request.files), now.hashes),
        versions={name: found for name in _PACKAGES if (found := optional.version(name))},
        notices=tuple(notices),
    )


def tidy(work: Path) -> None:
    """Take away what only the preparation needed. Raises OSError."""
    for path in work.iterdir():
        if path.name in ("parts", "spool"):
            shutil.rmtree(path)
        elif path.name == JOURNAL or path.suffix in (".len", ".mask") or not path.stat().st_size:
            path.unlink()


def publish(made: Path, final: Path) -> None:
    """Give the finished directory `made` its name, replacing an older one. Raises OSError."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    made.rename(final)
    shutil.rmtree(old, ignore_errors=True)
