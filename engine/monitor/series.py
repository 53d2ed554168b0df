"""One metric over the iterations of a run, in bounded memory.

A streaming min/max pyramid: every bucket keeps the least, the greatest and the mean of its
iterations, and when the buckets are used up each two become one. A spike therefore never
vanishes, and neither memory nor the cost of a picture grows with the run. The newest values are
kept as they came, for a look at the end of a long run.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

CAPACITY = 2048
"""Buckets kept; after a halving half of them, which is still more than the dots of a wide screen."""

RECENT = 4096
"""Newest values kept one by one, at least."""

MOST_ITERATIONS = 10**12
"""A greater number is damage: nobody will ever count so far."""

_NAN = math.nan


@dataclass(frozen=True, slots=True)
class Column:
    """What falls into one dot column of a chart."""

    low: float
    high: float
    mean: float


class Series:
    """The values of one metric by iteration; iterations may be missing, and may start over."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity < 2 or capacity % 2:
            raise ValueError(f"a series needs an even number of buckets, 2 or more, not {capacity}")
        self._capacity = capacity
        self._low = array("d")
        self._high = array("d")
        self._sum = array("d")
        self._count = array("Q")
        self._places = array("Q")
        self._values = array("d")
        self.stride = 1
        """Iterations in one bucket."""
        self.last: float | None = None
        self.last_iteration = -1
        self.first_iteration = 0
        """The least that there is a value of, once there is one."""
        self.points = 0
        """Finite values taken, those of undone iterations included."""
        self.rejected = 0
        """Values that were not finite numbers."""

    def __len__(self) -> int:
        return len(self._count)

    def add(self, iteration: int, value: float) -> None:
        """Take one value. An iteration at or before the last one undoes what came after it:
        a resumed run repeats the iterations since its checkpoint.
        """
        self.extend((iteration,), (value,))

    def extend(self, iterations: Sequence[int], values: Sequence[float]) -> None:
        """Take values as they came, one after the other."""
        # In one function and with local names: a long run is a million values of each of its metrics.
        low, high, total, count, stride = self._low, self._high, self._sum, self._count, self.stride
        isfinite, keep_place, keep_value = math.isfinite, self._places.append, self._values.append
        for iteration, value in zip(iterations, values, strict=True):
            if not 0 <= iteration <= MOST_ITERATIONS:
                continue
            if not isfinite(value):
                self.rejected += 1
                continue
            bucket = iteration // stride
            if iteration <= self.last_iteration or bucket >= len(count):
                self._make_room(iteration)
                low, high, total, count, stride = self._low, self._high, self._sum, self._count, self.stride
                bucket = iteration // stride
            if not count[bucket]:
                low[bucket] = high[bucket] = total[bucket] = value
            else:
                if value < low[bucket]:
                    low[bucket] = value
                elif value > high[bucket]:
                    high[bucket] = value
                total[bucket] += value
            count[bucket] += 1
            keep_place(iteration)
            keep_value(value)
            self.last, self.last_iteration = value, iteration
            self.points += 1
        if (surplus := len(self._places) - RECENT) > RECENT:
            del self._places[:surplus], self._values[:surplus]

    def _make_room(self, iteration: int) -> None:
        """A bucket for this iteration; what it undoes is dropped."""
        if self.last_iteration < 0 or iteration < self.first_iteration:
            self.first_iteration = iteration
        if iteration <= self.last_iteration:
            self._rewind(iteration)
        while iteration >= self._capacity * self.stride:
            self._halve()
        bucket = iteration // self.stride
        if bucket >= len(self._count):
            self._grow(bucket + 1 - len(self._count))

    def columns(self, first: float, last: float, width: int) -> list[Column | None]:
        """The iterations `first`..`last` as `width` columns; None where there is no value."""
        columns: list[Column | None] = [None] * width
        if last <= first or width < 1:
            return columns
        scale = (width - 1) / (last - first) if width > 1 else 0.0
        is_finer = last - first < width * self.stride
        if is_finer and self.stride > 1 and self._places and first >= self._places[0]:
            return self._recent_columns(first, last, scale, columns)
        start = max(0, math.floor(first) // self.stride)
        stop = min(len(self._count), math.floor(last) // self.stride + 1)
        stride, middle = self.stride, (self.stride - 1) / 2
        # Not a call for each of the thousands of buckets; the columns never fall.
        places = [round((bucket * stride + middle - first) * scale) for bucket in range(start, stop)]
        at = 0
        while at < len(places):
            column = max(0, places[at])
            end = bisect_right(places, column, at) if column < width - 1 else len(places)
            columns[min(width - 1, column)] = self._merged(start + at, start + end)
            at = end
        return columns

    def _recent_columns(
        self, first: float, last: float, scale: float, columns: list[Column | None]
    ) -> list[Column | None]:
        """The same from single values."""
        groups: dict[int, array[float]] = {}
        for place in range(bisect_left(self._places, first), bisect_right(self._places, last)):
            column = min(len(columns) - 1, round((self._places[place] - first) * scale))
            groups.setdefault(column, array("d")).append(self._values[place])
        for column, values in groups.items():
            columns[column] = Column(low=min(values), high=max(values), mean=sum(values) / len(values))
        return columns

    def _merged(self, first: int, end: int) -> Column | None:
        """The buckets from `first` up to `end` as one column."""
        stores = self._count, self._low, self._high, self._sum
        counts, low, high, total = (store[first:end] for store in stores)
        if 0 in counts:
            filled = [count > 0 for count in counts]
            low, high, total = (array("d", compress(store, filled)) for store in (low, high, total))
        if not low:
            return None
        return Column(low=min(low), high=max(high), mean=sum(total) / sum(counts))

    def _grow(self, buckets: int) -> None:
        for store in (self._low, self._high, self._sum):
            store.extend([_NAN] * buckets)
        self._count.extend([0] * buckets)

    def _halve(self) -> None:
        low, high, total, count = self._low, self._high, self._sum, self._count
        if len(count) % 2:
            self._grow(1)
        self._low, self._high, self._sum, self._count = array("d"), array("d"), array("d"), array("Q")
        self._grow(len(count) // 2)
        for old in range(len(count)):
            if count[old] == 0:
                continue
            new = old // 2
            if self._count[new] == 0:
                self._low[new], self._high[new], self._sum[new] = low[old], high[old], total[old]
            else:
                self._low[new] = min(self._low[new], low[old])
                self._high[new] = max(self._high[new], high[old])
                self._sum[new] += total[old]
            self._count[new] += count[old]
        self.stride *= 2

    def _rewind(self, iteration: int) -> None:
        # A bucket that also holds earlier iterations is kept whole: its undone values cannot
        # be told apart any more, and dropping it would lose true ones.
        keep = -(-iteration // self.stride)
        for store in (self._low, self._high, self._sum, self._count):
            del store[keep:]
        undone = bisect_left(self._places, iteration)
        del self._places[undone:], self._values[undone:]
