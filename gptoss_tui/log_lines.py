"""Which lines of a log tell of errors and warnings, and a copy of those."""

from __future__ import annotations

import os
import re
from enum import Enum
from pathlib import Path

from engine import secrets

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


def for_its_owner(path: str, flags: int) -> int:
    """Opens a file that a log is copied to: logs may hold what others must not read."""
    return os.open(path, flags, 0o600)


def export(path: Path, level: Level, target: Path) -> int:
    """Write the lines of `path` that `level` leaves to `target`; returns how many. Raises OSError.

    The bytes are written as they are but for secrets, escape sequences included: the copy is for other programs.
    """
    pattern = PATTERNS.get(level)
    count = 0
    with path.open("rb") as source, open(target, "xb", opener=for_its_owner) as copy:
        for line in source:
            if pattern is None or pattern.search(line):
                copy.write(secrets.redact(line.decode(errors="surrogateescape")).encode(errors="surrogateescape"))
                count += 1
    return count
