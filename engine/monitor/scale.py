"""Round axis ticks, and a range that does not wobble with every new point."""

from __future__ import annotations

import math
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_GROWTH = (1, 2, 3, 5, 10)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear or logarithmic axis from `low` to `high`."""

    low: float
    high: float
    is_log: bool = False

    def position(self, value: float) -> float:
        """Where `value` lies, 0 at `low` and 1 at `high`; held inside that range."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        if high <= low:
            return 0.5
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self, wanted: int) -> list[float]:
        """Round values inside the range, about `wanted` of them."""
        if self.is_log and self.high / self.low >= 10:
            return _log_ticks(self.low, self.high, wanted)
        step = nice_step((self.high - self.low) / max(1, wanted))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def fits(self, low: float, high: float) -> bool:
        """True when `low`..`high` lies inside and takes up more than half of the axis."""
        if not (self.low <= low and high <= self.high):
            return False
        return self.position(high) - self.position(low) > 0.55


def nice_step(rough: float) -> float:
    """The round number at or above `rough`: 1, 2, 2.5 or 5 times a power of ten."""
    if not math.isfinite(rough) or rough <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))


def bounded(value: float) -> float:
    """`value`, held where sums and differences of it are finite."""
    return min(max(value, -1e300), 1e300)


def make_scale(low: float, high: float, *, is_log: bool = False, previous: Scale | None = None) -> Scale:
    """An axis that holds `low`..`high`; the `previous` one where that still serves.

    A logarithmic axis is refused to values at or below zero: it becomes a linear one.
    """
    # The distance of two finite numbers may be no finite one.
    low, high = bounded(low), bounded(high)
    is_log = is_log and low > 0
    if previous is not None and previous.is_log == is_log and previous.fits(low, high):
        return previous
    if is_log:
        return _log_scale(low, high)
    if high - low <= abs(high) * 1e-9:
        margin = abs(high) * 0.05 or 1.0
        return Scale(low - margin, high + margin)
    # An axis that had to give way once will again: with room to spare it stays for longer.
    step = nice_step((high - low) / (16 if previous is None else 4))
    return Scale(math.floor(low / step) * step, math.ceil(high / step) * step)


def grown(value: float, limit: float = math.inf) -> float:
    """A round number at or above `value`, at most `limit`: how far an axis of iterations reaches.

    It grows in jumps, so that a chart is redrawn whole only now and then.
    """
    if value >= limit:
        return value
    power = 10.0 ** math.floor(math.log10(max(value, 1)))
    return min(limit, next(factor * power for factor in _GROWTH if factor * power >= value))


def count(value: float) -> str:
    """A count with a short suffix, three digits: `950`, `12.3k`, `4.56M`, `1.20B`."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1000:
        return f"{value:.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"
    for size, suffix in ((1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T")):
        if abs(value) < size * 999.5 or suffix == "T":
            scaled = value / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{suffix}"
    raise AssertionError(value)


def labels(ticks: list[float]) -> list[str]:
    """The ticks as short texts, all with the same number of decimals."""
    if not ticks:
        return []
    largest = max(abs(tick) for tick in ticks)
    step = min((b - a for a, b in zip(ticks, ticks[1:], strict=False)), default=largest or 1.0)
    if largest >= 1e4:
        return [count(tick) for tick in ticks]
    if 0 < largest < 1e-2:
        return [f"{tick:.1e}".replace("e-0", "e-") if tick else "0" for tick in ticks]
    decimals = min(4, max(0, -math.floor(math.log10(step) + 1e-9))) if step > 0 else 2
    if decimals and any(abs(tick * 10**decimals - round(tick * 10**decimals)) > 1e-6 for tick in ticks):
        decimals += 1  # steps of 2.5
    return [f"{tick:.{decimals}f}" for tick in ticks]


def _log_scale(low: float, high: float) -> Scale:
    if high / low < 1.001:
        return Scale(low / 1.05, high * 1.05, is_log=True)
    return Scale(_round_log(low, math.floor), _round_log(high, math.ceil), is_log=True)


def _round_log(value: float, direction: object) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    mantissa = value / power
    if direction is math.floor:
        return power * max(step for step in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if step <= mantissa * (1 + 1e-9))
    return power * min(step for step in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0) if step >= mantissa * (1 - 1e-9))


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [m * 10.0**d for d in decades for m in mantissas if low <= m * 10.0**d <= high]
        if len(ticks) <= max(2, wanted):
            return ticks
    return ticks[:: max(1, len(ticks) // max(2, wanted))]
