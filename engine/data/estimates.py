"""From a few windows to the whole: ratio estimates with their confidence intervals, and facts about lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 95 % confidence interval; both ends equal where it was counted."""

    value: float
    low: float
    high: float

    @classmethod
    def counted(cls, value: float) -> Estimate:
        return cls(value=value, low=value, high=value)


@dataclass(slots=True)
class Window:
    """Sums over one window: the unit of the estimate's variance."""

    raw_bytes: int = 0
    records: int = 0
    text_bytes: int = 0
    tokenised_bytes: int = 0
    tokens: int = 0


class Estimates:
    """Records, bytes of text and tokens of inputs of `whole` bytes, from windows of them."""

    def __init__(self, windows: list[Window], whole: int, is_exact: bool) -> None:
        used = [window for window in windows if window.raw_bytes > 0]
        if is_exact:
            self.records = Estimate.counted(sum(w.records for w in windows))
            self.text_bytes = Estimate.counted(sum(w.text_bytes for w in windows))
            self.tokens = Estimate.counted(sum(w.tokens for w in windows))
            return
        self.records = _ratio([(w.records, w.raw_bytes) for w in used], whole)
        self.text_bytes = _ratio([(w.text_bytes, w.raw_bytes) for w in used], whole)
        # Not every text that was read was tokenised: take each window's own tokens a byte.
        per_raw = [(w.tokens * w.text_bytes / w.tokenised_bytes, w.raw_bytes) for w in used if w.tokenised_bytes]
        self.tokens = _ratio(per_raw, whole)


def _ratio(pairs: Sequence[tuple[float, float]], whole: int) -> Estimate:
    """`whole` times the ratio of sums, with the usual linearised variance of a ratio."""
    n, below = len(pairs), sum(x for _, x in pairs)
    if not n or not below:
        return Estimate(value=0.0, low=0.0, high=0.0)
    ratio = sum(y for y, _ in pairs) / below
    value = ratio * whole
    if n < 2:
        return Estimate(value=value, low=0.0, high=math.inf)
    spread = sum((y - ratio * x) ** 2 for y, x in pairs) / (n - 1)
    margin = _Z95 * math.sqrt(spread / n) / (below / n) * whole
    return Estimate(value=value, low=max(0.0, value - margin), high=value + margin)


def length_facts(lengths: list[int]) -> dict[str, float]:
    if not lengths:
        return {}
    ordered = sorted(lengths)
    last = len(ordered) - 1
    facts: dict[str, float] = {
        "minimum": ordered[0],
        "median": ordered[last // 2],
        "mean": sum(ordered) / len(ordered),
    }
    return {
        **facts,
        "90 %": ordered[last * 9 // 10],
        "99 %": ordered[last * 99 // 100],
        "maximum": ordered[-1],
    }


def histogram(lengths: list[int]) -> tuple[tuple[int, int], ...]:
    counts: dict[int, int] = {}
    for length in lengths:
        bound = 1 << max(0, length - 1).bit_length()
        counts[bound] = counts.get(bound, 0) + 1
    return tuple(sorted(counts.items()))


def epochs(found: Estimate, planned: int) -> Estimate | None:
    if not found.value:
        return None
    high = planned / found.low if found.low else math.inf
    return Estimate(value=planned / found.value, low=planned / found.high if found.high else 0.0, high=high)
