"""Keys of a person's own: `keys.toml` names actions and the keys that carry them out (docs/wizard.md).

Read at the start, refused as a whole and in words when something in it cannot work.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.binding import Binding
from textual.keys import Keys, _character_to_key, key_to_character

from engine.errors import SettingsError
from engine.options import suggest

MAX_BYTES = 100_000
_MODIFIERS = {"ctrl", "shift", "alt", "meta", "super", "hyper"}
_DOCKER = {"ctrl+p", "ctrl+q"}
"""How docker detaches from a container: such a key may never arrive."""
_WHERE = (
    "app:CockpitApp",
    "screens.base:CockpitScreen",
    "screens.home:HomeScreen",
    "screens.setup:SetupScreen",
    "screens.presets:PresetsScreen",
    "screens.job:JobScreen",
    "screens.monitor:MonitorScreen",
    "screens.watch:WatchScreen",
    "screens.runs:RunsScreen",
    "screens.compare:CompareScreen",
    "screens.doctor:DoctorScreen",
    "screens.confirm:ConfirmScreen",
    "screens.choose:ChooseScreen",
    "screens.asking:AskScreen",
    "screens.help:HelpScreen",
    "widgets.choices:Choices",
    "widgets.form:Form",
    "widgets.alternatives:Alternatives",
    "widgets.review:Review",
    "widgets.log_view:LogView",
    "widgets.chart:Chart",
)
"""Every class with keys."""
_TOGETHER = (
    ("list", "home", "screen", "app"),
    ("list", "runs", "screen", "app"),
    ("list", "presets", "screen", "app"),
    ("list", "setup", "screen", "app"),
    ("choice", "form", "setup", "screen", "app"),
    ("review", "setup", "screen", "app"),
    ("log", "monitor", "screen", "app"),
    ("chart", "monitor", "screen", "app"),
    ("log", "monitor", "watch", "screen", "app"),
    ("chart", "monitor", "watch", "screen", "app"),
    ("list", "dialog"),
    ("chart", "compare", "screen", "app"),
    ("doctor", "screen", "app"),
    ("dialog",),
    ("help",),
)
"""First parts of the names of actions whose keys are heard at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """Something a key does."""

    name: str
    keys: tuple[str, ...]
    meaning: str

    @property
    def scope(self) -> str:
        return self.name.partition(".")[0]


def actions() -> dict[str, Action]:
    """Every action that has a key, by name, with the keys it comes with. Imports all screens."""
    found: dict[str, Action] = {}
    for where in _WHERE:
        module, _, name = where.partition(":")
        for binding in getattr(importlib.import_module(f"gptoss_tui.{module}"), name).__dict__.get("BINDINGS", ()):
            if isinstance(binding, Binding) and binding.id:
                known = found[binding.id].keys if binding.id in found else ()
                keys = tuple(dict.fromkeys((*known, *(_long(key) for key in binding.key.split(",")))))
                found[binding.id] = Action(name=binding.id, keys=keys, meaning=binding.description)
    return found


def read(file: Path) -> dict[str, str]:
    """The keys in a file, as Textual's keymap. Raises SettingsError naming the first thing that cannot work."""
    tables = _tables(file)
    known = actions()
    chosen: dict[str, tuple[str, ...]] = {}
    for name, value in _flat(tables):
        if name not in known:
            hint = suggest(name, list(known)) or "docs/wizard.md lists every action"
            raise SettingsError(f"{file}: there is no action {name!r}", hint)
        chosen[name] = _keys(file, name, value)
    _refuse_conflicts(file, known, chosen)
    return {name: ",".join(keys) for name, keys in chosen.items()}


def _tables(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{file} is larger than {MAX_BYTES:,} bytes", "it holds a line for each action")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}", "make it a readable file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not TOML: {error}", 'write lines such as "monitor.stop" = "ctrl+s"') from error


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """`[monitor] stop = …` is the same as `"monitor.stop" = …`."""
    for name, value in tables.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _keys(file: Path, name: str, value: object) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or not listed or not all(isinstance(key, str) for key in listed):
        raise SettingsError(f"{file}: {name} = {value!r} is no key", 'write "x", "ctrl+x", "f5" or a list of keys')
    keys = tuple(_long(key.strip()) for text in listed for key in ([text] if text == "," else text.split(",")))
    for key in keys:
        if key in _DOCKER:
            raise SettingsError(
                f"{file}: {name} = {key!r} would not arrive in a container: docker detaches with ctrl+p ctrl+q",
                "take another key",
            )
        if not _is_key(key):
            raise SettingsError(f"{file}: {name} = {key!r} is no key", 'for example "x", "X", "ctrl+x", "f5", "space"')
    return keys


def _is_key(key: str) -> bool:
    *modifiers, base = key.split("+")
    if not set(modifiers) <= _MODIFIERS:
        return False
    return len(base) == 1 or base in {one.value for one in Keys} or key_to_character(base) is not None


def _long(key: str) -> str:
    """A key as Textual names it: `?` is `question_mark`; letters stay as they are."""
    return key if len(key) != 1 or key.isalnum() else _character_to_key(key)


def _refuse_conflicts(file: Path, known: Mapping[str, Action], chosen: Mapping[str, tuple[str, ...]]) -> None:
    effective = {name: chosen.get(name, action.keys) for name, action in known.items()}
    for name, keys in chosen.items():
        for other, others in effective.items():
            both = set(keys) & set(others)
            if other == name or not both or not _meet(known[name].scope, known[other].scope):
                continue
            raise SettingsError(
                f"{file}: {min(both)!r} would be both {name} ({known[name].meaning}) and {other} "
                f"({known[other].meaning})",
                f"give one of them another key, for example {other} = …",
            )


def _meet(one: str, other: str) -> bool:
    return one == other or any(one in together and other in together for together in _TOGETHER)


def table() -> str:
    """Every action as the table of docs/wizard.md: python -m gptoss_tui.keys."""
    rows = [
        f"| `{action.name}` | {' '.join(f'`{key}`' for key in action.keys)} | {action.meaning} |"
        for action in actions().values()
    ]
    return "\n".join(["| Action | Keys | What it does |", "|---|---|---|", *rows])


if __name__ == "__main__":
    print(table())
