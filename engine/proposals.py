"""Changes of settings as options to paste into a shell, and read back from a fix that is nothing else."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from engine.findings import ASSIGNMENT
from engine.options import Problem, Value, parse, text_of
from engine.settings import OPTIONS

_PLACEHOLDER = re.compile(r"[A-Z][A-Z:]*|…|\.\.\.")
"""What a person must fill in: DIR, NAME, HH:MM:SS."""


def as_options(edit: Mapping[str, Value]) -> str:
    """`--set` options that make `edit`, quoted for bash."""
    return " ".join(f"--set {shlex.quote(f'{key}={text_of(value)}')}" for key, value in edit.items())


def edit_in(text: str) -> dict[str, Value]:
    """The settings that `text` tells to change, when it is nothing but that and says every value; else none."""
    found = list(ASSIGNMENT.finditer(text))
    if not found or re.sub(r"\s+", " ", ASSIGNMENT.sub("", text)).strip():
        return {}
    edit: dict[str, Value] = {}
    for one in found:
        value = _value(one["key"], one["value"])
        if value is None:
            return {}
        edit[one["key"]] = value
    return edit


def _value(key: str, text: str) -> Value | None:
    """What `--set key=text` sets; None for a placeholder and for what cannot be set."""
    try:
        text = "".join(shlex.split(text))
    except ValueError:
        return None  # an open quote: part of a sentence
    if key not in OPTIONS or _PLACEHOLDER.fullmatch(text):
        return None
    value = parse(OPTIONS[key], text)
    return None if isinstance(value, Problem) else value
