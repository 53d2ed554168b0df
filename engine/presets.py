"""Named starting points: the ones that ship with gptoss and the person's own.

A preset is a settings file with a `title` and a `summary`; it names only what it changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from engine import secrets
from engine.errors import NotFoundError, SettingsError
from engine.options import Value, suggest
from engine.paths import config_root, expanded, make_own, write_atomic
from engine.settings import OPTIONS, VERSION, Settings, merge, to_tables
from engine.settings_file import read_tables

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_MADE_FOR = re.compile(r"-(\d+)x([a-z]+\d+)$")
"""How the name of a shipped preset ends: the number and the kind of its GPUs."""


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


def suited_first(found: Iterable[Preset], gpus: Sequence[str]) -> tuple[Preset, ...]:
    """`found` with what suits a machine first; `gpus` names its GPUs, such as `H100 80GB HBM3`.

    The person's own come first; then those made for just these GPUs, for fewer of them and for several such
    machines; then rehearsals, and last what is made for other machines. Among equals, training on from the released
    weights comes first: it is what most people want of GPUs.
    """
    kind = gpus[0].lower() if gpus else ""

    def rank(preset: Preset) -> int:
        if preset.is_user:
            return 0
        if made_for := _MADE_FOR.search(preset.name):
            count = int(made_for[1])
            is_same = made_for[2] in kind
            return (1 if count == len(gpus) else 2 if count < len(gpus) else 3) if is_same else 5
        return 4 if preset.settings.machine.device == "cpu" else 6

    return tuple(sorted(found, key=lambda preset: (rank(preset), preset.settings.training.goal != "continue")))


def find(name: str) -> Preset:
    """The preset called `name`, or in the file `name`. Raises NotFoundError, SettingsError."""
    if "/" in name or name.endswith(".toml"):
        return load(expanded(name))
    for directory, is_user in ((user_directory(), True), (_shipped(), False)):
        path = directory / f"{name}.toml"
        if path.is_file():
            return load(path, is_user)
    names = [path.stem for directory in (user_directory(), _shipped()) for path in directory.glob("*.toml")]
    raise NotFoundError(
        f"there is no preset {name!r}", suggest(name, names) or f"there are: {', '.join(sorted(set(names)))}"
    )


def save(name: str, settings: Settings, *, title: str = "", summary: str = "", overwrite: bool = True) -> Path:
    """Write `settings` as the person's preset `name`, only what differs from the defaults.

    Raises SettingsError for a name that cannot be a file's or, without `overwrite`, is taken already; OSError when
    it cannot be written.
    """
    path = _own_path(name)
    if path.exists() and not overwrite:
        raise SettingsError(
            f"there is a preset {name} of yours already: {path}",
            "take another name, delete that one first, or give --overwrite on the command line",
        )
    text = dumps(settings, title=title or name, summary=summary or "A preset of your own.")
    secrets.refuse(text, path.name)
    make_own(path.parent)
    write_atomic(path, text)
    return path


def delete(name: str) -> Path:
    """Remove a preset of the person's own. Raises SettingsError for a shipped one, NotFoundError."""
    path = _own_path(name)
    if not path.is_file() and (_shipped() / path.name).is_file():
        raise SettingsError(f"{name} comes with gptoss and cannot be deleted", "only your own presets can")
    if not path.is_file():
        mine = ", ".join(sorted(each.stem for each in user_directory().glob("*.toml")))
        raise NotFoundError(f"you have no preset {name!r}", f"yours are: {mine}" if mine else "you have none yet")
    path.unlink()
    return path


def dumps(settings: Settings, *, title: str, summary: str) -> str:
    """The file form of a preset: what differs from the defaults, under a title."""
    import tomli_w  # imported here: only those who save need it

    changed = to_tables(settings, since=Settings())
    return tomli_w.dumps({"version": VERSION, "title": title, "summary": summary, **changed})


def shared(preset: Preset, name: str) -> tuple[str, tuple[str, ...]]:
    """`preset` as the text of a file `name` for somebody else, and the settings that name files of this machine.

    Raises SettingsError for one that holds a secret.
    """
    text = dumps(preset.settings, title=preset.title, summary=preset.summary)
    secrets.refuse(text, name)
    return text, tuple(key for key in OPTIONS if OPTIONS[key].is_path and preset.settings.value(key))


def write_shared(text: str, path: Path) -> None:
    """Write what `shared` made. Raises SettingsError when there is a file already or it cannot be written."""
    try:
        if path.exists():
            raise SettingsError(f"{path} exists already", "give another file")
        write_atomic(path, text)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror}", "give a file in a directory of yours"
        ) from error


def differences(before: Settings, after: Settings) -> dict[str, tuple[Value, Value]]:
    """What `after` sets otherwise than `before`, by option."""
    pairs = {key: (before.value(key), after.value(key)) for key in OPTIONS}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _own_path(name: str) -> Path:
    """Where the person's preset `name` lies. Raises SettingsError for a name that cannot be a file's."""
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"{name[:80]!r} cannot name a preset", "use up to 80 letters, digits, dots, dashes and underscores"
        )
    return user_directory() / f"{name}.toml"


def _shipped() -> Path:
    return Path(str(resources.files("presets")))
