"""How people write numbers: the one rule for settings, options and prompts.

`8`, `1_000`, `1,000`, `1e9`, `10k`, `2.5M`, and with the unit of what is asked for: `10min`, `2GB`, `5%`.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Final

PREFIXES: Final[dict[str, int]] = {"k": 1_000, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
"""Letters behind a count and what they stand for, whatever their case."""
_UNITS: Final[dict[str, dict[str, int | Decimal]]] = {
    "s": {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86_400},
    "MB": {"kb": Decimal("0.001"), "mb": 1, "gb": 1_000, "tb": 1_000_000},
    "%": {"%": 1},
}
"""What may follow a number of that unit, in small letters, and how many of it that is."""
_LONGEST = 60
_HIGHEST = Decimal("1e300")
"""Beyond it a number might be none of Python's floats."""
_NOT_FINITE: Final = {"inf", "infinity", "nan"}
_NUMBER = re.compile(
    r"([+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)?(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,3})?)\s*([a-z%]*)"
)


def read_number(text: str, unit: str = "") -> int | float | None:
    """The number that `text` says, in `unit`; whole ones exactly. None when it is none, inf or nan when it says so."""
    text = text.strip().lower()
    if text.lstrip("+-") in _NOT_FINITE:
        return float(text)
    found = _NUMBER.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None or not re.search(r"[0-9]", found[1].partition("e")[0]):
        return None
    # `5m` of a duration would be minutes to one reader and millions to another.
    factor = {"": 1, **_UNITS.get(unit, PREFIXES)}.get(found[2])
    if factor is None:
        return None
    number = Decimal(found[1].replace(",", "").replace("_", "")) * factor
    if abs(number) > _HIGHEST:
        return math.copysign(math.inf, number)
    return int(number) if number == number.to_integral_value() else float(number)


def size_text(gib: float) -> str:
    """A size for people to read, three digits of it or so: `1,234 GiB`, `12.8 GiB`, `37.5 MiB`."""
    if gib >= 100:
        return f"{gib:,.0f} GiB"
    return f"{gib:.1f} GiB" if gib >= 0.05 else f"{gib * 1024:.1f} MiB"
