"""Secrets must not reach a file: settings, scripts and env files are read by others, and kept.

A token is passed by name, from the environment of whoever starts the run. What a library prints of it into a log
stays there, where only its owner reads it; whatever is shown, sent or copied from there goes through `redact`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from engine.errors import SettingsError

LEAST_LETTERS = 8
"""Shorter values of such variables are switches ("true", "0"), no secrets."""

_NAME = re.compile(r"(?:^|_)(?:TOKEN|API_?KEY|ACCESS_KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?:_|$)", re.IGNORECASE)
_NO_SECRET = re.compile(r"_(?:PATH|FILE|DIR|HOME)$", re.IGNORECASE)
_SHAPES = (
    (re.compile(r"\bhf_[A-Za-z0-9]{30,}"), "a Hugging Face token"),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{30,}"), "a GitHub token"),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), "an AWS key"),
    (re.compile(r"\b(?:sk|nvapi)-[A-Za-z0-9_-]{30,}"), "an API key"),
)


def is_secret_name(name: str) -> bool:
    """True when a variable of this name holds a secret."""
    return bool(_NAME.search(name)) and not _NO_SECRET.search(name)


def find(text: str, environ: Mapping[str, str] | None = None) -> str:
    """What secret `text` holds, in words that do not repeat it; empty when there is none."""
    for name, value in _values(os.environ if environ is None else environ):
        if value in text:
            return f"the value of ${name}"
    return next((what for shape, what in _SHAPES if shape.search(text)), "")


def redact(text: str) -> str:
    """`text` with the name of each secret in its place: those of this environment, and what has the shape of one."""
    for name, value in _values(os.environ):
        # Records are redacted as JSON, which spells quotes, backslashes and letters beyond ASCII otherwise.
        for spelled in (json.dumps(value)[1:-1], value):
            text = text.replace(spelled, f"[${name}]")
    for shape, what in _SHAPES:
        text = shape.sub(f"[{what}]", text)
    return text


def _values(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The variables that hold secrets."""
    # As bytes where it can be: to decode every name took most of the time of what is redacted piece by piece.
    for name in _secret_names(tuple(os.environb if environ is os.environ else environ)):
        value = environ.get(name, "")
        if len(value) >= LEAST_LETTERS:
            yield name, value


@lru_cache(8)
def _secret_names(names: tuple[str | bytes, ...]) -> tuple[str, ...]:
    return tuple(filter(is_secret_name, map(os.fsdecode, names)))


def refuse(text: str, where: str) -> None:
    """Raise SettingsError when `text`, which is about to be written to `where`, holds a secret."""
    if found := find(text):
        raise SettingsError(
            f"{where} would hold {found}, for everybody who can read the file",
            "pass it by name: export it in your shell, and give containers `--env NAME` without a value",
        )


def refuse_names(names: Mapping[str, str], where: str) -> None:
    """Raise SettingsError when a variable among `names` is one that holds a secret."""
    for name, value in names.items():
        if value and is_secret_name(name):
            raise SettingsError(
                f"{where} sets {name}, and would keep a secret where others can read it",
                f"take it out, and export {name} in your shell instead: the steps inherit it",
            )
