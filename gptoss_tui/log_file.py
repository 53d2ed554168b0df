"""A text file of any size by line number: an index of offsets, and only the lines asked for are read.

Read with `pread`, not mapped into memory: touching a mapping of a file that another process cuts
short ends the program (SIGBUS).
"""

from __future__ import annotations

import os
import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from engine import secrets, visible
from engine.patience import NoAnswer, Patient

CHUNK_BYTES = 4 << 20
"""Indexed or searched in one call: a few milliseconds."""
TIMED_BYTES = 1 << 18
"""Looked through for times in one call."""
TIME_PLACE_BYTES = 48
"""The time of a line stands at its beginning, after the rank and the level at most."""
DISK_S = 0.25
"""How long a screen waits for a disk: for longer than this it would seem not to take keys."""
LONGEST_SHOWN_BYTES = 8192
"""Of a longer line only the beginning is shown."""

_NEWLINE = re.compile(rb"\n")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


class Lines(Protocol):
    """Numbered lines that grow: of one file, or of several in one order."""

    generation: int

    def __len__(self) -> int: ...
    @property
    def whole_lines(self) -> int: ...
    @property
    def is_behind(self) -> bool: ...
    def update(self) -> bool: ...
    def line(self, number: int) -> str: ...
    def label(self, number: int) -> str: ...
    def matches(self, pattern: re.Pattern[bytes], first: int, end: int) -> tuple[int, list[int]]: ...
    def search(self, pattern: re.Pattern[bytes], start: int, *, backwards: bool = False) -> Iterator[int | None]: ...
    def close(self) -> None: ...


class LogFile:
    """The lines of one growing file."""

    def __init__(self, path: Path, disk: Patient | None = None) -> None:
        """With `disk` no call takes longer than it allows: what does not answer by then has nothing new."""
        self.path = path
        self._disk = disk
        self._offsets = array("Q", [0])
        self._indexed = 0
        self._size = 0
        self._inode = (0, 0)
        self._descriptor: int | None = None
        self.generation = 0
        """Grows when the file was cut or replaced: line numbers of before mean nothing then."""

    def __len__(self) -> int:
        """Lines known so far; a last line without its end counts."""
        return len(self._offsets) - 1 + (self._indexed > self._offsets[-1])

    @property
    def whole_lines(self) -> int:
        """Lines that have their end."""
        return len(self._offsets) - 1

    @property
    def is_behind(self) -> bool:
        """True while there is more to index."""
        return self._indexed < self._size

    def update(self) -> bool:
        """Index what was appended, at most 4 MiB of it; True when anything changed.

        A cut or replaced file is indexed anew; one that cannot be read is an empty one.
        """
        try:
            status = self._ask(self.path.stat)
            inode = (status.st_dev, status.st_ino)
            started_over = inode != self._inode or status.st_size < self._indexed
            if started_over:
                self._start_over(inode)
            self._size = status.st_size
            if not self.is_behind:
                return started_over
            chunk = self._ask(partial(os.pread, self._open(), CHUNK_BYTES, self._indexed))
        except NoAnswer:
            return False  # what is known stays
        except OSError:
            was_filled = len(self) > 0
            self._start_over((0, 0))
            return was_filled
        start = self._indexed
        self._offsets.extend([match.end() + start for match in _NEWLINE.finditer(chunk)])
        self._indexed += len(chunk)
        return True

    def line(self, number: int) -> str:
        """One line, safe to show; empty when it is not there any more."""
        return readable(self._read(self._offsets[number], self._end_of(number), LONGEST_SHOWN_BYTES))

    def label(self, number: int) -> str:
        """Nothing: all lines are of one rank."""
        return ""

    def times(self, patterns: Sequence[re.Pattern[bytes]], first: int) -> tuple[int, dict[int, re.Match[bytes]]]:
        """The first match near the beginning of whole lines, of about 256 KiB from `first` on, and where to go on."""
        whole = self.whole_lines
        if first >= whole:
            return first, {}
        last = max(first, min(whole - 1, self._line_at(self._offsets[first] + TIMED_BYTES) - 1))
        start = self._offsets[first]
        try:
            data = self._read(start, self._end_of(last), None)
        except NoAnswer:
            return first, {}
        found: dict[int, re.Match[bytes]] = {}
        for pattern in patterns:
            for match in pattern.finditer(data):
                line = self._line_at(start + match.start())
                if line not in found and start + match.start() - self._offsets[line] <= TIME_PLACE_BYTES:
                    found[line] = match
        return last + 1, found

    def search(self, pattern: re.Pattern[bytes], start: int, *, backwards: bool = False) -> Iterator[int | None]:
        """Line numbers that match, from line `start` on, nearest first.

        Yields None after every 4 MiB searched, so that the caller can let others work. Ends when the file is
        cut or replaced meanwhile.
        """
        generation = self.generation
        for first, last in self._blocks(start, backwards):
            _, found = self.matches(pattern, first, last + 1)
            yield from reversed(found) if backwards else found
            yield None
            if self.generation != generation:
                return

    def matches(self, pattern: re.Pattern[bytes], first: int, end: int) -> tuple[int, list[int]]:
        """Lines that match among about 4 MiB from line `first` on, and where to go on; `end` is not looked at."""
        last = self._last_of_piece(first, end)
        data = self._read(self._offsets[first], self._end_of(last), None)
        found = dict.fromkeys(self._line_at(self._offsets[first] + m.start()) for m in pattern.finditer(data))
        return last + 1, list(found)

    def close(self) -> None:
        """Give the file handle back; what is read next opens the file again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            self._disk.later(partial(os.close, descriptor)) if self._disk is not None else os.close(descriptor)

    def _blocks(self, start: int, backwards: bool) -> Iterator[tuple[int, int]]:
        """Ranges of whole lines of about 4 MiB each, walking from `start` to one end of the file."""
        total = len(self)
        if backwards:
            last = min(start, total - 1)
            while last >= 0:
                limit = max(0, self._end_of(last) - CHUNK_BYTES)
                first = min(last, bisect_left(self._offsets, limit))
                yield first, last
                last = first - 1
        else:
            first = max(0, start)
            while first < total:
                last = self._last_of_piece(first, total)
                yield first, last
                first = last + 1

    def _last_of_piece(self, first: int, end: int) -> int:
        """The last line of about 4 MiB from line `first` on, before line `end`."""
        return max(first, min(end - 1, self._line_at(self._offsets[first] + CHUNK_BYTES) - 1))

    def _line_at(self, offset: int) -> int:
        return bisect_right(self._offsets, offset) - 1

    def _end_of(self, number: int) -> int:
        return self._offsets[number + 1] - 1 if number + 1 < len(self._offsets) else self._indexed

    def _read(self, start: int, end: int, most: int | None) -> bytes:
        length = max(0, end - start)
        try:
            return self._ask(partial(os.pread, self._open(), min(length, most or length), start))
        except NoAnswer:
            if most is None:
                raise  # a search must not take it for an empty file
            return b""
        except OSError:
            return b""

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = self._ask(partial(os.open, self.path, os.O_RDONLY | os.O_CLOEXEC))
        return self._descriptor

    def _ask[T](self, call: Callable[[], T]) -> T:
        return self._disk.call(call) if self._disk is not None else call()

    def _start_over(self, inode: tuple[int, int]) -> None:
        self.close()
        if len(self):  # one that stays away, or may not be read, loses its lines once
            self.generation += 1
        self._offsets = array("Q", [0])
        self._indexed = self._size = 0
        self._inode = inode


class LineFilter:
    """The numbers of the lines of a file that match, found little by little."""

    def __init__(self, file: Lines, pattern: re.Pattern[bytes]) -> None:
        self._file = file
        self._pattern = pattern
        self._generation = -1
        self._scanned = 0
        self.numbers = array("Q")
        """In the order of the file."""

    def update(self) -> bool:
        """Look through what was indexed since, at most about 4 MiB of it; True when anything was looked at.

        A last line that has no end yet waits for it.
        """
        if self._file.generation != self._generation:
            self._generation, self._scanned, self.numbers = self._file.generation, 0, array("Q")
        whole = self._file.whole_lines
        if self._scanned >= whole:
            return False
        try:
            last, found = self._file.matches(self._pattern, self._scanned, whole)
        except NoAnswer:
            return False
        self.numbers.extend(found)
        self._scanned = last
        return True

    def row_of(self, number: int) -> int | None:
        """The place of a line among those that match."""
        row = bisect_left(self.numbers, number)
        return row if row < len(self.numbers) and self.numbers[row] == number else None


def readable(line: bytes | str) -> str:
    """A line of a log, or words from a record, as one line of text that cannot do anything to a terminal.

    Colour codes are taken out, of a progress bar that rewrites its line the last form is kept,
    any other control character becomes a dot, and a secret becomes the name of it.
    """
    # Through bytes too: JSON can hold half surrogates, which cannot be written.
    data = line.encode(errors="replace") if isinstance(line, str) else line
    text = _ESCAPES.sub("", data.decode("utf-8", "replace")).rstrip("\r\n")
    if "\r" in text:
        text = text.rpartition("\r")[2]
    return visible.clean(secrets.redact(text).expandtabs(8).replace("\n", "·"), "·")
