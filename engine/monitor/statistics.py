"""Running statistics with bounded memory and bounded work per value."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

_IQR_PER_SIGMA = 1.349


class Window:
    """The last `size` values; median and spread of them."""

    def __init__(self, size: int) -> None:
        self._recent: deque[float] = deque(maxlen=size)
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._recent)

    @property
    def is_full(self) -> bool:
        return len(self._recent) == self._recent.maxlen

    def add(self, value: float) -> None:
        if self.is_full:
            del self._sorted[bisect_left(self._sorted, self._recent[0])]
        self._recent.append(value)
        insort(self._sorted, value)

    def clear(self) -> None:
        self._recent.clear()
        self._sorted.clear()

    @property
    def median(self) -> float:
        """The middle value. Needs at least one."""
        middle = len(self._sorted) // 2
        if len(self._sorted) % 2:
            return self._sorted[middle]
        return (self._sorted[middle - 1] + self._sorted[middle]) / 2

    @property
    def largest(self) -> float:
        return self._sorted[-1]

    @property
    def spread(self) -> float:
        """Standard deviation as the quartiles tell it: single outliers do not move it. Needs at least one value."""
        count = len(self._sorted)
        return (self._sorted[(3 * count) // 4] - self._sorted[count // 4]) / _IQR_PER_SIGMA


class Counter:
    """How much a counter has risen; one that fell was started anew."""

    def __init__(self) -> None:
        self._last = 0

    def rise(self, value: object) -> int:
        """By how much `value` is above the last one; 0 for what is no count."""
        if not isinstance(value, int):
            return 0
        grown = value - self._last if value >= self._last else value
        self._last = value
        return grown


@dataclass(slots=True)
class Bucket:
    """Count, mean and summed squared deviation of some values."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self.squares += step * (value - self.mean)

    def merge(self, other: Bucket) -> Bucket:
        """Both together."""
        count = self.count + other.count
        if not count:
            return Bucket()
        step = other.mean - self.mean
        return Bucket(
            count,
            self.mean + step * other.count / count,
            self.squares + other.squares + step * step * self.count * other.count / count,
        )

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        if self.count < 2:
            return float("inf")
        return float((self.squares / (self.count - 1) / self.count) ** 0.5)


class Quarters:
    """A whole history in at most 64 buckets, to compare its quarters however long it is."""

    _BUCKETS = 64

    def __init__(self) -> None:
        self._buckets: list[Bucket] = [Bucket()]
        self._width = 1

    def add(self, value: float) -> bool:
        """Take a value; True each time the history has doubled and is worth comparing."""
        if self._buckets[-1].count == self._width:
            if len(self._buckets) == self._BUCKETS:
                self._halve()
            self._buckets.append(Bucket())
        self._buckets[-1].add(value)
        return len(self._buckets) == self._BUCKETS and self._buckets[-1].count == self._width

    def __len__(self) -> int:
        return sum(bucket.count for bucket in self._buckets)

    def quarter(self, number: int) -> Bucket:
        """One quarter of the history, counted from 0."""
        size = len(self._buckets) // 4
        whole = Bucket()
        for bucket in self._buckets[number * size : (number + 1) * size]:
            whole = whole.merge(bucket)
        return whole

    def _halve(self) -> None:
        pairs = zip(self._buckets[::2], self._buckets[1::2], strict=True)
        self._buckets = [first.merge(second) for first, second in pairs]
        self._width *= 2
