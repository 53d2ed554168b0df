"""The logs of all ranks as one: in the order of the times in their lines, new lines in the order of their arrival.

An index of which file each row comes from, never the text: two bytes a line here and eight in its file's list of
rows. Times are read once, while a file is indexed. Rows that were given stay where they are.
"""

from __future__ import annotations

import calendar
import math
import re
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from engine.patience import Patient
from gptoss_tui.log_file import LineFilter, LogFile
from gptoss_tui.log_lines import PATTERNS, Level, for_its_owner

MOST_OPEN = 64
"""Logs whose handles are kept; a thousand ranks would be a thousand open files."""
PIECE_S = 0.03
"""Of work in one call of `update`, so that keys are answered."""
_ROWS_AT_ONCE = 50_000
# 2026-11-22 07:16:32.123, also with T or a comma. A literal beginning makes the search many times faster.
_TIME = re.compile(rb"20(\d\d)-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,6}))?")
# I1122 07:16:32.123: glog, c10d. The year is left out.
_SHORT_TIME = re.compile(rb"\b[IWEF]()(\d\d)(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?")
_NUMBER = re.compile(r"(\d+)(?!.*\d)")


class MergedLog:
    """The whole lines of several growing files, in one order."""

    def __init__(self, paths: Sequence[Path], disk: Patient | None = None) -> None:
        self.paths = tuple(paths)
        self._files = [LogFile(path, disk) for path in paths]
        self._labels = _labels(self.paths)
        self._generations = [0] * len(self._files)
        self.generation = 0
        """Grows when a file was cut or replaced: line numbers of before mean nothing then."""
        self._start_over()

    def __len__(self) -> int:
        return len(self._order)

    @property
    def whole_lines(self) -> int:
        return len(self._order)

    @property
    def is_behind(self) -> bool:
        """True while there is more to index."""
        return any(map(self._is_unfinished, range(len(self._files))))

    def update(self) -> bool:
        """Index what was appended, for about `PIECE_S`; True when anything changed."""
        known = len(self)
        if self.is_behind:
            end = time.monotonic() + PIECE_S
            while (number := self._next()) is not None:
                self._look_at(number)
                if time.monotonic() >= end:
                    break
        else:
            for number in range(len(self._files)):
                self._look_at(number)
        generations = [file.generation for file in self._files]
        if was_reset := self._generations != generations:
            self.generation += 1
            self._generations = generations
            self._start_over()
        self._emit()
        return was_reset or len(self) != known

    def line(self, number: int) -> str:
        """One line, safe to show."""
        place = self._order[number]
        return self._files[place].line(bisect_left(self._rows[place], number))

    def label(self, number: int) -> str:
        """Whose line it is."""
        return self._labels[self._order[number]]

    def matches(self, pattern: re.Pattern[bytes], first: int, end: int) -> tuple[int, list[int]]:
        """Lines that match among some from `first` on, and where to go on; `end` is not looked at."""
        last = min(end, first + _ROWS_AT_ONCE)
        return last, self._matches(pattern, first, last)

    def search(self, pattern: re.Pattern[bytes], start: int, *, backwards: bool = False) -> Iterator[int | None]:
        """Line numbers that match, from line `start` on, nearest first; None after every piece."""
        total, generation = len(self), self.generation
        if backwards:
            pieces = [(max(0, at - _ROWS_AT_ONCE), at) for at in range(min(start + 1, total), 0, -_ROWS_AT_ONCE)]
        else:
            pieces = [(at, min(total, at + _ROWS_AT_ONCE)) for at in range(max(0, start), total, _ROWS_AT_ONCE)]
        for first, last in pieces:
            found = self._matches(pattern, first, last)
            yield from reversed(found) if backwards else found
            yield None
            if self.generation != generation:
                return

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _matches(self, pattern: re.Pattern[bytes], first: int, last: int) -> list[int]:
        """Of each file the rows `first` to `last` are neighbours."""
        found: list[int] = []
        for file, rows in zip(self._files, self._rows, strict=True):
            line, end = bisect_left(rows, first), bisect_left(rows, last)
            while line < end:
                line, lines = file.matches(pattern, line, end)
                found += [rows[one] for one in lines]
        return sorted(found)

    def _is_unfinished(self, number: int) -> bool:
        file = self._files[number]
        return file.is_behind or not self._is_seen[number] or self._taken[number] < file.whole_lines

    def _next(self) -> int | None:
        """The file whose next lines are the oldest, of those with more: the others wait for it."""
        left = [number for number in range(len(self._files)) if self._is_unfinished(number)]
        return min(left, key=self._frontier.__getitem__, default=None)

    def _look_at(self, number: int) -> None:
        file = self._files[number]
        self._is_seen[number] = True
        if self._taken[number] >= file.whole_lines:
            file.update()
        if file.generation == self._generations[number]:
            self._take_times(number)
        if len(self._files) > MOST_OPEN:
            file.close()

    def _take_times(self, number: int) -> None:
        """Note when the next lines were written; one without a time belongs to the line before it."""
        file = self._files[number]
        first = self._taken[number]
        end, found = file.times((_TIME, _SHORT_TIME), first)
        latest = self._frontier[number]
        times = self._waiting[number]
        for line in range(first, end):
            # A clock that is set back must not mix up the lines of one rank.
            if line in found and (t := _seconds(*found[line].groups())) is not None and t > latest:
                latest = t
            times.append(latest)
        self._taken[number], self._frontier[number] = end, latest

    def _emit(self) -> None:
        """Give rows to the lines that nothing unread can come before."""
        left = [self._frontier[number] for number in range(len(self._files)) if self._is_unfinished(number)]
        limit = min(left, default=math.inf)
        ready: list[tuple[float, int]] = []
        for number, times in enumerate(self._waiting):
            count = bisect_left(times, limit) if left else len(times)
            ready += [(t, number) for t in times[:count]]
            del times[:count]
        ready.sort()
        for _, number in ready:
            self._rows[number].append(len(self._order))
            self._order.append(number)

    def _start_over(self) -> None:
        count = len(self._files)
        self._order = array("H")
        self._rows = [array("Q") for _ in range(count)]
        self._taken = [0] * count
        self._is_seen = [False] * count
        self._frontier = [-math.inf] * count
        self._waiting = [array("d") for _ in range(count)]


def export_merged(paths: Sequence[Path], level: Level, target: Path) -> int:
    """Write the lines of all `paths` that `level` leaves to `target`, each with its rank; returns how many.

    Raises OSError.
    """
    merged = MergedLog(paths)
    try:
        merged.update()
        while merged.is_behind:
            merged.update()
        kept: Sequence[int] = range(len(merged))
        if (pattern := PATTERNS.get(level)) is not None:
            narrowed = LineFilter(merged, pattern)
            while narrowed.update():
                pass
            kept = narrowed.numbers
        with open(target, "x", encoding="utf-8", opener=for_its_owner) as copy:
            copy.writelines(f"{merged.label(number)}{merged.line(number)}\n" for number in kept)
        return len(kept)
    finally:
        merged.close()


@lru_cache(maxsize=1024)
def _seconds(
    year: bytes, month: bytes, day: bytes, hour: bytes, minute: bytes, second: bytes, part: bytes | None
) -> float | None:
    """A time on an own scale: only the order counts, and zones are not told."""
    try:
        # Lines with and without the year in one job are taken to be of the same one.
        date = (2000 + int(year) if year else time.gmtime().tm_year, int(month), int(day))
        whole = calendar.timegm((*date, int(hour), int(minute), int(second)))
    except (ValueError, OverflowError):
        return None
    return whole + float(b"0." + (part or b"0"))


def _labels(paths: Sequence[Path]) -> list[str]:
    """What tells the files apart, in equal width: rank numbers, else names."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [path.parent.name for path in paths]
    found = [_NUMBER.search(name) for name in names]
    numbers = [match[1] if match else "" for match in found]
    if all(numbers) and len(set(numbers)) == len(numbers):
        names = numbers
    width = max(map(len, names))
    return [f"{name:>{width}} " if name.isdecimal() else f"{name:<{width}} " for name in names]
