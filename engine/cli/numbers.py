"""Numbers on the command line: what each option takes, and one kind of error for what it does not."""

from __future__ import annotations

import argparse
import math


class Number:
    """A `type=` for argparse: numbers from `low` to `high`, of a unit that may be written behind them.

    No dataclass, and the reading is imported when it is needed: `gptoss --help` has no time for either.
    """

    def __init__(
        self, *, high: float, low: float = 0, is_whole: bool = True, excludes_low: bool = False, unit: str = ""
    ) -> None:
        self.low, self.high = low, high
        self.is_whole = is_whole
        self.excludes_low = excludes_low
        self.unit = unit

    def __call__(self, text: str) -> int | float:
        """Raises ArgumentTypeError naming the value and the limits."""
        from engine.number_text import read_number

        number = read_number(text, self.unit)
        if number is None:
            raise self._refusal(text, "no number")
        if isinstance(number, float) and not math.isfinite(number):
            raise self._refusal(text, "not finite")
        if self.is_whole and not isinstance(number, int):
            raise self._refusal(text, "no whole number")
        if not self.low <= number <= self.high or (self.excludes_low and number == self.low):
            raise self._refusal(text, "out of range")
        return number if self.is_whole else float(number)

    def _refusal(self, text: str, why: str) -> argparse.ArgumentTypeError:
        shown = repr(text if len(text) <= 40 else text[:40] + "…")
        low = f"more than {self.low:,g}" if self.excludes_low else f"{self.low:,g}"
        kind = "whole numbers" if self.is_whole else "numbers"
        link = "and up to" if self.excludes_low else "to"
        unit = f" {self.unit}" if self.unit else ""
        return argparse.ArgumentTypeError(f"{shown} is {why}; it takes {kind}, {low} {link} {_plain(self.high)}{unit}")


def _plain(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:g}"


COUNT = Number(low=1, high=10**9)
SMALL_COUNT = Number(low=1, high=4096)
"""Questions and words that one waits for."""
GPUS = Number(low=1, high=72)
NODES = Number(low=1, high=65_536)
PROCESSES = Number(low=1, high=4096)
PLACES = Number(low=1, high=100_000)
"""Rows of a table."""
RANK = Number(high=1_000_000)
PORT = Number(high=65_535)
SHARE = Number(high=99, is_whole=False, unit="%")
AMOUNT = Number(high=1e18, is_whole=False, excludes_low=True)
"""Tokens: more than none, and no more than anybody has."""
PRICE = Number(high=1e6, is_whole=False)
