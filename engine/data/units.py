"""The work cut into units: parts of the inputs that one process handles at a time, in a fixed order.

A compressed file cannot be entered in the middle: it is unpacked here into pieces ("spools"), a few
ahead of the work, which are deleted as soon as they have been read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.data import records
from engine.data.sources import SourceFile
from engine.errors import SettingsError

_MIB = 1 << 20
SPOOL_BYTES = 64 * _MIB
"""Fixed: where a compressed text is cut into documents must not depend on the machine."""
_SMALLEST, _LARGEST = 4 * _MIB, 64 * _MIB
_UNITS = 256
_FILES_PER_UNIT = 512
_READ_BYTES = 8 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of one file."""

    file: SourceFile
    number: int
    """Which of the inputs this belongs to, from 0."""
    start: int = 0
    end: int | None = None
    origin: int = 0
    """Where a spool begins in the content of its compressed file."""
    is_spool: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One piece of work, by its number in the order of the output."""

    number: int
    parts: tuple[Part, ...]
    size_bytes: int
    """About how much of the inputs it covers, as they lie on the disk."""

    def cut(self, size: int) -> Unit | None:
        """The beginning of it, about `size` bytes; None when nothing can be cut off that is so small."""
        kept: list[Part] = []
        for part in self.parts:
            length = (part.end or part.file.size_bytes) - part.start if part.file.is_lines else 0
            if not part.file.is_lines or size <= 0:
                break
            kept.append(replace(part, end=part.start + min(size, length)))
            size -= min(size, length)
        return replace(self, parts=tuple(kept), size_bytes=self.size_bytes) if kept else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Unit:
        parts = tuple(Part(**{**part, "file": SourceFile(**part["file"])}) for part in value["parts"])
        return cls(**{**value, "parts": parts})


def unit_bytes(total: int) -> int:
    """A size that keeps many processes busy to the end; it depends on the inputs alone, so that any number
    of them can go on with a preparation that others began.
    """
    return max(_SMALLEST, min(_LARGEST, total // _UNITS // _MIB * _MIB))


class Cutter:
    """Cuts the inputs into units of about `size` bytes, small files together."""

    def __init__(self, files: Sequence[SourceFile], size: int, spool: Path, is_done: Callable[[int], bool]) -> None:
        """Spools go into `spool`; units for which `is_done` is true get none."""
        self._files = files
        self._size = size
        self._spool = spool
        self._is_done = is_done
        self._number = 0
        self._held: list[Part] = []
        self._held_bytes = 0

    def units(self) -> Iterator[Unit]:
        """The units in order. Lazy: spools appear when their unit is asked for. Raises SettingsError, OSError."""
        for number, file in enumerate(self._files):
            for part, weight in self._parts(file, number):
                # A part that is a unit by itself; the others wait for company.
                is_alone = part.is_spool or weight >= self._size
                is_full = self._held_bytes + weight > self._size or len(self._held) >= _FILES_PER_UNIT
                if self._held and (is_alone or is_full):
                    yield self._unit()
                self._held.append(part)
                self._held_bytes += weight
                if is_alone:
                    yield self._unit()
        if self._held:
            yield self._unit()

    def _unit(self) -> Unit:
        unit = Unit(number=self._number, parts=tuple(self._held), size_bytes=self._held_bytes)
        self._number, self._held, self._held_bytes = self._number + 1, [], 0
        return unit

    def _parts(self, file: SourceFile, number: int) -> Iterator[tuple[Part, int]]:
        if not file.is_lines:
            yield from _table_parts(file, number, self._size)
        elif file.compression:
            yield from self._spooled(file, number)
        else:
            for start in range(0, file.size_bytes, self._size):
                end = min(start + self._size, file.size_bytes)
                yield Part(file=file, number=number, start=start, end=end), end - start

    def _spooled(self, file: SourceFile, number: int) -> Iterator[tuple[Part, int]]:
        content = 0
        try:
            with records.open_stream(file) as stream:
                while True:
                    target = self._spool / f"{number:06d}-{content:015d}"
                    # What is held becomes a unit of its own before this one.
                    is_done = self._is_done(self._number + bool(self._held))
                    written = _unpack(stream, None if is_done else target)
                    if not written:
                        return
                    piece = replace(file, path=str(target), compression="", size_bytes=written)
                    # How much of the packed file this is can only be guessed; progress needs no more.
                    yield Part(file=piece, number=number, origin=content, is_spool=True), written // 3
                    content += written
        except EOFError as error:
            raise SettingsError(f"{file.path} is cut off: {error}", "copy it again") from error


def _table_parts(file: SourceFile, number: int, size: int) -> Iterator[tuple[Part, int]]:
    sizes = records.table_parts(file)
    share = file.size_bytes / max(1, sum(sizes))
    start, held = 0, 0.0
    for position, weight in enumerate(sizes, 1):
        held += weight * share
        if held >= size or position == len(sizes):
            yield Part(file=file, number=number, start=start, end=position), int(held)
            start, held = position, 0.0


def _unpack(stream: Any, target: Path | None) -> int:
    """Write SPOOL_BYTES of `stream`, up to a line end, to `target` if there is one; return how many bytes."""
    written = 0
    with open(target or "/dev/null", "wb") as out:
        while written < SPOOL_BYTES and (block := stream.read(min(_READ_BYTES, SPOOL_BYTES - written))):
            written += out.write(block)
        if written >= SPOOL_BYTES:
            written += out.write(stream.readline())
    if not written and target:
        target.unlink()
    return written
