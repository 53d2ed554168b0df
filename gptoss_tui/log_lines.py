"""Which lines of a log tell of errors and warnings, and a copy of those."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

# Megatron counts NaN iterations on every line, mostly as zero.
_ERROR = r"error|traceback|exception|fatal|out of memory|\bnan\b(?! iterations)"
_WARNING = r"\bwarn"


class Level(Enum):
    """Which lines are shown."""

    ALL = ""
    WARNINGS = "warnings and errors"
    ERRORS = "errors"


PATTERNS = {
    Level.WARNINGS: re.compile(f"{_ERROR}|{_WARNING}".encode(), re.IGNORECASE),
    Level.ERRORS: re.compile(_ERROR.encode(), re.IGNORECASE),
}
BAD = re.compile(_ERROR, re.IGNORECASE)
WARN = re.compile(_WARNING, re.IGNORECASE)


def export(path: Path, level: Level, target: Path) -> int:
    """Write the lines of `path` that `level` leaves to `target`; returns how many. Raises OSError.

    The bytes are written as they are, escape sequences included: the copy is for other programs.
    """
    pattern = PATTERNS.get(level)
    count = 0
    with path.open("rb") as source, target.open("xb") as copy:
        for line in source:
            if pattern is None or pattern.search(line):
                copy.write(line)
                count += 1
    return count
