"""How facts reach a person or a program: facts on stdout, progress and errors on stderr."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import secrets, visible
from engine.errors import SettingsError
from engine.paths import expanded

STDOUT = "-"
"""In place of a file that is to be written: standard output."""
_MORE_LINES, _INDENT = re.compile(r"\n[ \t]*"), "\n        "


def print_json(value: Any, *, line: bool = False) -> None:
    """One JSON value on stdout; as a single line inside a stream of them."""
    print(secrets.redact(json.dumps(value, indent=None if line else 2)), flush=True)


def goes_to_stdout(arguments: argparse.Namespace, *names: str) -> bool:
    """True when one of the options `names`, which take a file, is `-`: then stdout gets that and nothing else.

    Raises SettingsError when it would have to hold two things.
    """
    chosen = [name for name in names if getattr(arguments, name) == STDOUT]
    if len(chosen) > 1 or (chosen and getattr(arguments, "json", False)):
        raise SettingsError(
            "standard output (-) can hold one thing only", "give a file in place of one -, or leave --json out"
        )
    return bool(chosen)


def write_out(text: str) -> None:
    """What would stand in a file, on stdout: as it is, but made safe to look at where that is a terminal."""
    print(clean(text) if sys.stdout.isatty() else secrets.redact(text), end="", flush=True)


def directory(text: str) -> Path:
    """The directory that a person named for what is to be made. Raises SettingsError for `-`."""
    if text == STDOUT:
        raise SettingsError("- is standard output; a directory is wanted here", "give its name; ./- is one called -")
    return expanded(text)


def say(text: str) -> None:
    """A line of progress for the person, on stderr."""
    print(clean(text), file=sys.stderr, flush=True)


def can_rewrite() -> bool:
    """Whether stderr is a terminal on which a line can be written anew."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def rewrite(text: str) -> None:
    """Write the last line of the terminal anew, cut to its width: what wraps could not be taken back."""
    import shutil

    width = shutil.get_terminal_size((80, 24)).columns - 1
    print(f"\r\x1b[K{clean(text)[:width]}", end="", file=sys.stderr, flush=True)


def print_error(message: str, hint: str) -> None:
    """An error and the next thing to try, on stderr."""
    say(_MORE_LINES.sub(_INDENT, f"gptoss: {message}"))
    if hint:
        say(_MORE_LINES.sub(_INDENT, f"        {hint}"))


def clean(text: str) -> str:
    """`text` without secrets, and without that by which a log or a name could drive the terminal, hide or mislead."""
    return visible.clean(secrets.redact(text))


def table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    """Aligned columns under their heads."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [heads, *rows]]
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes as people say them, in powers of ten: 0.94 MB, 41.83 GB."""
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
