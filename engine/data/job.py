"""What the process that prepares data and its tokenising processes say to each other: JSON lines.

The first line on a tokenising process's stdin is the Job, every further one a Unit; it answers each
Unit with a Result or with an error, and leaves at the end of its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.data.harmony import Style
from engine.data.shape import Shape

TRAIN, VALIDATION = "train", "validation"
SIDES = (TRAIN, VALIDATION)

STOP, SKIP = "stop", "skip"
"""What to do at a record that cannot be used."""

MAX_REPORTED = 100
"""So many rejections of a unit are kept in full; all are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """How documents become tokens; the same for every unit."""

    shape: Shape
    tokenizer: str
    """The tokenizer.json."""
    encoder: str
    """`gigatoken` or `tokenizers`."""
    end_of_document: int
    special_ids: tuple[int, ...]
    token_type: str
    validation_share: float
    parts: str
    """The directory into which the parts are written."""
    on_bad_record: str = STOP
    halves_at: float = 0.0
    """Above 0: the only document is cut there, its end becomes the validation side."""
    style: Style = field(default_factory=Style)
    longest: int = 0
    """Chats of more tokens lose their oldest turns; 0 means no limit."""

    @property
    def token_bytes(self) -> int:
        """What one token takes in the .bin."""
        return 2 if self.token_type == "uint16" else 4

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Job:
        return cls(
            **{
                **value,
                "shape": Shape(**value["shape"]),
                "style": Style(**value["style"]),
                "special_ids": tuple(value["special_ids"]),
            }
        )


@dataclass(slots=True, kw_only=True)
class Counts:
    """Sums over documents; two of them add up."""

    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    trained: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))
    """Tokens that count for the loss; all of them in text."""
    text_bytes: int = 0
    empty: int = 0
    """Records left out because there is nothing in them."""
    rejected: int = 0
    """Records left out because they could not be used."""
    with_control_tokens: int = 0
    """Documents in which a control token such as <|start|> is spelt out."""
    shortened: int = 0
    """Chats that lost their oldest turns."""
    too_long: int = 0
    """Chats left out because not even their last turn fits."""

    def add(self, other: Counts) -> None:
        for name in ("documents", "tokens", "trained"):
            mine, theirs = getattr(self, name), getattr(other, name)
            for side in SIDES:
                mine[side] += theirs[side]
        for name in _SINGLE:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Counts:
        made = cls()
        for name in ("documents", "tokens", "trained"):
            setattr(made, name, {side: int(value[name][side]) for side in SIDES})
        for name in _SINGLE:
            setattr(made, name, int(value[name]))
        return made


_SINGLE = ("text_bytes", "empty", "rejected", "with_control_tokens", "shortened", "too_long")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one unit."""

    unit: int
    counts: Counts
    hashes: tuple[tuple[int, str], ...]
    """Number of an input and the hash of the documents of it that are in the unit."""
    lowest: tuple[float, ...]
    """The two lowest shares (`splits.share`) among the documents."""
    rejections: tuple[tuple[int, str, str], ...] = ()
    """Number of the input, where in it, and why; the first MAX_REPORTED of them."""
    rss_mib: int = 0
    """Memory of the process after the unit."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Result:
        return cls(
            unit=int(value["unit"]),
            counts=Counts.from_json(value["counts"]),
            hashes=tuple((int(number), str(name)) for number, name in value["hashes"]),
            lowest=tuple(map(float, value["lowest"])),
            rejections=tuple((int(n), str(where), str(why)) for n, where, why in value["rejections"]),
            rss_mib=int(value["rss_mib"]),
        )
