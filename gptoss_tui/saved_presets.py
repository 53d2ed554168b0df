"""Keep settings as a preset of the person's own."""

from __future__ import annotations

import re
from pathlib import Path

import tomli_w

from engine.errors import SettingsError
from engine.paths import write_atomic
from engine.presets import user_directory
from engine.settings import VERSION, Settings, to_tables

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def save(name: str, settings: Settings) -> Path:
    """Write `settings` as the preset `name`, only what differs from the defaults; replaces one of that name.

    Raises SettingsError for a name that cannot be a file's, OSError when it cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} cannot name a preset", "use letters, digits, dots, dashes and underscores")
    changed = to_tables(settings, since=Settings())
    path = user_directory() / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, tomli_w.dumps({"version": VERSION, "title": name, "summary": "Saved in the set-up.", **changed}))
    return path
