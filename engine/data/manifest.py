"""What was prepared, from what, with what: `manifest.json` beside the token files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.data.sources import SourceFile
from engine.errors import SettingsError
from engine.paths import write_atomic

FILE = "manifest.json"
VERSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """One input as it was read."""

    path: str
    size_bytes: int
    modified_ns: int
    content_hash: str
    """Over its documents in order; the same for the same documents in another format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A prepared dataset."""

    source: str
    """`text`, `sample`, `chat`, `prefix` or `mock`, as in the settings."""
    prefix: str = ""
    """The .bin/.idx pair of source `prefix`, without its ending; the others lie beside the manifest."""
    identity: str = ""
    """Hash of the inputs (names, sizes, times) and of every choice: `Request.identity`."""
    documents: int = 0
    train_documents: int = 0
    train_tokens: int = 0
    validation_tokens: int = 0
    trained_tokens: int = 0
    """Tokens of the training side that count for the loss; fewer than all in chats."""
    vocabulary_size: int = 0
    token_type: str = ""
    end_of_document: int = -1
    tokenizer_hash: str = ""
    """sha256 of the tokenizer.json."""
    encoder: str = ""
    columns: tuple[str, ...] = ()
    validation_share: float = 0.0
    text_bytes: int = 0
    empty: int = 0
    rejected: int = 0
    with_control_tokens: int = 0
    shortened: int = 0
    too_long: int = 0
    packing: Mapping[str, Any] = field(default_factory=dict)
    """For chats: sequence length, packs and efficiency of each side."""
    sources: tuple[SourceFacts, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    """What a person should know about how it was made."""
    checked_by: str = ""
    """What read the result back: `megatron`, or `gptoss` where Megatron is not installed."""

    @property
    def sides(self) -> dict[str, int]:
        """The documents of each side that has any."""
        counts = {"train": self.train_documents, "validation": self.documents - self.train_documents}
        return {side: count for side, count in counts.items() if count}

    def save(self, directory: Path) -> None:
        """Write it into `directory`. Raises OSError."""
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1)
        write_atomic(directory / FILE, text + "\n")

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Raises SettingsError when there is none, or one of a newer gptoss."""
        path = directory / FILE
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            version = value.pop("version")
            if version > VERSION:
                raise SettingsError(f"{path} was written by a newer gptoss", "upgrade gptoss")
            lists = {
                "sources": tuple(SourceFacts(**item) for item in value.get("sources", ())),
                "columns": tuple(value.get("columns", ())),
                "notices": tuple(value.get("notices", ())),
            }
            return cls(**{**value, **lists})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SettingsError(f"{path} cannot be used: {error}", "run the prepare step again") from error


def changed_sources(manifest: Manifest) -> list[str]:
    """A sentence for each input that is no longer what it was when it was prepared."""
    found = []
    for source in manifest.sources:
        try:
            facts = Path(source.path).stat()
        except OSError as error:
            found.append(f"{source.path}: {error.strerror}")
            continue
        if facts.st_size != source.size_bytes:
            found.append(f"{source.path} has {facts.st_size:,} bytes; it had {source.size_bytes:,}")
        elif facts.st_mtime_ns != source.modified_ns:
            found.append(f"{source.path} was written to since")
    return found


def facts_of(files: list[SourceFile], hashes: Mapping[int, str]) -> tuple[SourceFacts, ...]:
    """`files` as they are noted, with the hash of each by its number."""
    return tuple(
        SourceFacts(
            path=file.path,
            size_bytes=file.size_bytes,
            modified_ns=file.modified_ns,
            content_hash=hashes.get(number, ""),
        )
        for number, file in enumerate(files)
    )
