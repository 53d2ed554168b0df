"""Whether the tokenizer beside a model is that model's: ids have rows, and those that config.json names exist."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError
from engine.models import Model
from engine.paths import file_text

FILE = "tokenizer.json"
MAX_BYTES = 256_000_000
_NAMED = ("bos_token_id", "eos_token_id", "pad_token_id")


def require_rows(directory: Path, model: Model) -> None:
    """Raise CheckpointError when the tokenizer in `directory`, if there is one, has ids without a row."""
    path = directory / FILE
    if path.is_file() and (largest := max(_ids(path), default=-1)) >= model.vocab:
        raise CheckpointError(
            f"{path} knows token ids up to {largest:,} and the model has rows for {model.vocab:,}",
            "put the model's own tokenizer there",
        )


def unknown_ids(directory: Path, config: Mapping[str, Any]) -> list[str]:
    """The ids that config.json names and the tokenizer in `directory`, if there is one, does not know, in words."""
    path = directory / FILE
    ids = _ids(path) if path.is_file() else set()
    return [
        f"config.json has {name} = {number}, which {path} does not know (its ids end at {max(ids):,})"
        for name, number in _named(config)
        if ids and number not in ids
    ]


def require_fitting(directory: Path, model: Model, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for either."""
    require_rows(directory, model)
    if found := unknown_ids(directory, config):
        raise CheckpointError(found[0], "put the model's own tokenizer there; another one would mix up its tokens")


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name in _NAMED:
        value = config.get(name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not isinstance(number, bool):
                yield name, number


def _ids(path: Path) -> set[int]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_BYTES:,} bytes", "give a Hugging Face tokenizer.json")
        value = json.loads(file_text(path))
        held = value["model"]["vocab"]
        # BPE and WordPiece map tokens to ids; Unigram lists its tokens in the order of their ids.
        ids = {int(number) for number in held.values()} if isinstance(held, dict) else set(range(len(held)))
        return ids | {int(token["id"]) for token in value.get("added_tokens") or []}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no tokenizer: {error}", "give a Hugging Face tokenizer.json") from error
