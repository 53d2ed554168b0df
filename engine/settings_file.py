"""Settings and presets as TOML files: read, write, refuse what a newer version wrote."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from engine import secrets
from engine.errors import NotFoundError, SettingsError
from engine.paths import write_atomic
from engine.settings import VERSION, Settings, merge, to_tables

MAX_BYTES = 50_000
"""A settings file is a few kilobytes; a larger one is something else."""
MAX_DOTS = 1000
"""In one line. A key of 20,000 parts keeps TOML's parser busy for many seconds."""


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a settings file, `version` taken out.

    Raises NotFoundError for a missing file, SettingsError for one that is not ours.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{path} is larger than {MAX_BYTES:,} bytes", "give a gptoss.toml")
        text = path.read_text(encoding="utf-8")
        if max(line.count(".") for line in text.split("\n")) > MAX_DOTS:
            raise SettingsError(f"{path} has a line with more than {MAX_DOTS:,} dots", "give a gptoss.toml")
        tables = tomllib.loads(text)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", "list presets with: gptoss presets") from None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", "give a readable TOML file") from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, and of numbers that are too long for Python
        raise SettingsError(f"{path} is not TOML: {error}", "compare it with: gptoss presets show rehearsal") from error
    version = tables.pop("version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise SettingsError(
            f"{path} was written by a newer gptoss (settings version {version!r}; this one reads {VERSION})",
            "upgrade gptoss",
        )
    return tables


def load(path: Path, base: Settings | None = None) -> Settings:
    """Settings from a file, over `base`. Raises as `read_tables` and `merge` do."""
    tables = read_tables(path)
    if not tables:
        # After a power cut a file may be there without its content: the defaults would be another run.
        raise SettingsError(f"{path} is empty", "write its settings again, or take them from a backup")
    tables.pop("preset", None)
    try:
        return merge(base or Settings(), tables)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error.message}", error.hint) from error


def dumps(settings: Settings) -> str:
    """The file form: every value, so that a later change of a default changes no old run."""
    import tomli_w  # imported here: workers read settings inside containers that lack it

    return tomli_w.dumps({"version": VERSION, **to_tables(settings)})


def save(settings: Settings, path: Path) -> None:
    """Write `settings` to `path` atomically. Raises OSError, and SettingsError for a value that is a secret."""
    text = dumps(settings)
    secrets.refuse(text, path.name)
    write_atomic(path, text)
