"""Named starting points: the ones that ship with gptoss and the person's own.

A preset is a settings file with a `title` and a `summary`; it names only what it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from engine.errors import NotFoundError, SettingsError
from engine.options import suggest
from engine.paths import config_root
from engine.settings import Settings, merge
from engine.settings_file import read_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A partial Settings with a name."""

    name: str
    title: str
    summary: str
    path: Path
    is_user: bool
    tables: Mapping[str, Any] = field(repr=False)

    @property
    def settings(self) -> Settings:
        """The preset over the defaults. Raises SettingsError for a bad value in it."""
        try:
            return merge(Settings(), self.tables)
        except SettingsError as error:
            raise SettingsError(f"{self.path}: {error.message}", error.hint) from error


def user_directory() -> Path:
    """Where the person's own presets live."""
    return config_root() / "presets"


def load(path: Path, is_user: bool = True) -> Preset:
    """Read one preset file. Raises as `read_tables` does."""
    tables = read_tables(path)
    return Preset(
        name=path.stem,
        title=str(tables.pop("title", path.stem)),
        summary=str(tables.pop("summary", "")),
        path=path,
        is_user=is_user,
        tables=tables,
    )


def all_presets() -> tuple[Preset, ...]:
    """Every preset that can be read, the person's own before the shipped ones of the same name."""
    found: dict[str, Preset] = {}
    for directory, is_user in ((user_directory(), True), (_shipped(), False)):
        for path in sorted(directory.glob("*.toml")):
            if path.stem in found:
                continue
            try:
                found[path.stem] = load(path, is_user)
            except (SettingsError, NotFoundError):
                if not is_user:
                    raise
    # The rehearsal first: it is the one that works everywhere.
    return tuple(sorted(found.values(), key=lambda p: (p.name != "rehearsal", not p.is_user, p.name)))


def find(name: str) -> Preset:
    """The preset called `name`, or in the file `name`. Raises NotFoundError, SettingsError."""
    if "/" in name or name.endswith(".toml"):
        return load(Path(name).expanduser())
    for directory, is_user in ((user_directory(), True), (_shipped(), False)):
        path = directory / f"{name}.toml"
        if path.is_file():
            return load(path, is_user)
    names = [path.stem for directory in (user_directory(), _shipped()) for path in directory.glob("*.toml")]
    raise NotFoundError(
        f"there is no preset {name!r}", suggest(name, names) or f"there are: {', '.join(sorted(set(names)))}"
    )


def _shipped() -> Path:
    return Path(str(resources.files("presets")))
