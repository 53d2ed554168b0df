"""What a person asks of a preparation, and what they are told while it runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.data import manifest
from engine.data.harmony import Style
from engine.data.job import STOP, Job
from engine.data.packed_file import PackRules
from engine.data.shape import Shape
from engine.data.sources import SourceFile
from engine.data.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All that decides what is written."""

    files: tuple[SourceFile, ...]
    shape: Shape
    vocabulary: Vocabulary
    output: Path
    """The directory that will hold the dataset; it appears when everything is done."""
    source: str = "text"
    """`text`, `sample` or `chat`, as in the settings."""
    validation_percent: float = 5.0
    """0 writes no validation side."""
    on_bad_record: str = STOP
    encoder: str = ""
    """`gigatoken`, `tokenizers`, or empty for the fastest that gives the right tokens."""
    workers: int = 0
    """Tokenising processes; 0 means one for each core that memory allows."""
    limit_bytes: int = 0
    """Read at most about this much of the inputs; 0 means all."""
    style: Style = field(default_factory=Style)
    packing: PackRules | None = None
    """For chats; None for text."""
    reads_back: bool = True
    """Whether Megatron's own reader, where it is installed, checks the result."""

    def job(self, parts: Path, encoder: str, validation_share: float, halves_at: float) -> Job:
        """What the tokenising processes are told."""
        packing = self.packing
        return Job(
            shape=self.shape,
            tokenizer=self.vocabulary.path,
            encoder=encoder,
            end_of_document=self.vocabulary.end_of_document,
            special_ids=tuple(sorted(self.vocabulary.special.values())),
            token_type=self.token_type,
            validation_share=validation_share,
            parts=str(parts),
            on_bad_record=self.on_bad_record,
            halves_at=halves_at,
            style=self.style,
            # A chat of n tokens has n - 1 places to train.
            longest=packing.sequence_length // packing.multiple * packing.multiple + 1 if packing else 0,
        )

    def identity(self) -> str:
        """The same for requests that give the same tokens from the same files, however they are tokenised."""
        chosen = {
            "version": manifest.VERSION,
            "files": [(file.path, file.size_bytes, file.modified_ns) for file in self.files],
            "tokenizer": self.vocabulary.sha256,
            "job": {**self.job(Path(), "", self.validation_percent, 0.0).to_json(), "tokenizer": ""},
            "source": self.source,
            "limit": self.limit_bytes,
            "packing": asdict(self.packing) if self.packing else None,
        }
        return hashlib.blake2b(json.dumps(chosen, sort_keys=True).encode(), digest_size=16).hexdigest()

    @property
    def token_type(self) -> str:
        """The number format of the tokens: Megatron's choice for text, int32 for chats."""
        return "int32" if self.packing else self.vocabulary.token_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a preparation is."""

    phase: str
    done_bytes: int = 0
    total_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    documents_per_s: float = 0.0
    tokens_per_s: float = 0.0
    eta_s: float | None = None


type Tell = Callable[[Status], None]
