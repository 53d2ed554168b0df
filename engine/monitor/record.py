"""One line of a JSON-lines file of records: what is whole and sane is read, all else passed over."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_TIME = 1e11
"""Unix seconds; the year 5138. What lies beyond breaks every calendar and is no time."""

_decode = json.JSONDecoder().decode  # what json.loads does, but for guessing the encoding of every line


def parse_record(line: bytes) -> dict[str, Any] | None:
    """One line of a JSON-lines file, or None when it is no record: it was cut off, or is not ours."""
    if not line.lstrip().startswith(b"{"):
        return None  # far cheaper than an error of the parser for each line of a file of something else
    try:
        record = _decode(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind", ""), str):
        return None
    t = record.get("t", 0.0)
    is_time = isinstance(t, (int, float)) and abs(t) < MAX_TIME
    return record if is_time else None


def as_float(value: float) -> float:
    """A number of a record as a float; a whole number of hundreds of digits is infinity."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)
