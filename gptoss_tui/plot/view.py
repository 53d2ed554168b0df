"""Which part of the axis a chart shows: the whole, or a stretch that may follow the newest value."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST = 8.0
"""Places that are shown at least."""


@dataclass(frozen=True, slots=True)
class View:
    """A stretch of `span` places up to `end`; no span shows everything, no end follows the newest."""

    span: float | None = None
    end: float | None = None

    @property
    def is_zoomed(self) -> bool:
        return self.span is not None

    def range(self, newest: float) -> tuple[float, float]:
        """First and last place."""
        if self.span is None:
            return 0.0, newest
        last = newest if self.end is None else min(self.end, newest)
        last = max(last, min(self.span, newest))
        return last - self.span, last

    def factor(self, newest: float) -> float:
        """How many times larger than the whole everything appears."""
        return newest / self.span if self.span else 1.0

    def zoomed(self, factor: float, newest: float, around: float | None = None) -> View:
        """`factor` times as many places, `around` kept where it is; everything when they are all in."""
        first, last = self.range(newest)
        span = max(min(_LEAST, newest), (last - first) * factor)
        if span >= newest:
            return View()
        if around is None:
            return View(span, self.end)
        share = (around - first) / (last - first)
        return View(span, _at_most(around + (1 - share) * span, newest))

    def moved(self, shares: float, newest: float) -> View:
        """`shares` of its own length further on."""
        if self.span is None:
            return self
        _, last = self.range(newest)
        return View(self.span, _at_most(max(self.span, last + shares * self.span), newest))


def _at_most(end: float, newest: float) -> float | None:
    return None if end >= newest else end
