"""Paths as a person typed them, made absolute at the door.

A supervisor works in another directory, and another machine has another home: what leaves the door counts from
nowhere. Relative paths and `~` count for the person who types them, from the directory they are in, whether they
stand in `--set`, in a preset or in a settings file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.options import Value
from engine.paths import expanded
from engine.settings import HUB_PREFIX, OPTIONS, Settings

_FURTHER = ("launch.megatron_lm", "launch.env_file", "launch.image", "launch.mounts", "machine.hosts")
"""Options that are or may hold paths without being declared as one path."""
_IMAGE_FILES = (".sif", ".sqsh")
_IMAGE_STARTS = ("./", "../", "~")


def absolute(settings: Settings, base: Path | None = None) -> Settings:
    """A copy whose relative paths count from `base`, the working directory when None."""
    keys = (*(key for key, one in OPTIONS.items() if one.is_path), *_FURTHER)
    return settings.with_values(absolute_values({key: settings.value(key) for key in keys}, base))


def absolute_values(values: Mapping[str, Value], base: Path | None = None) -> dict[str, Value]:
    """`table.name` values as in `absolute`; those that are no paths stay as they are."""
    start = Path.cwd() if base is None else base
    return {key: _absolute(key, value, start) if isinstance(value, str) else value for key, value in values.items()}


def _absolute(key: str, text: str, base: Path) -> str:
    if not text or not (key in _FURTHER or (key in OPTIONS and OPTIONS[key].is_path)):
        return text
    if key == "launch.mounts":
        return ",".join(_mount(part.strip(), base) for part in text.split(","))
    is_name = (
        (key == "data.path" and text.startswith(HUB_PREFIX))
        or (key == "launch.python" and "/" not in text)  # looked up on the PATH, as a shell does
        or (key == "machine.hosts" and "/" not in text)  # the hosts themselves
        or (key == "launch.image" and not (text.endswith(_IMAGE_FILES) or text.startswith(_IMAGE_STARTS)))
    )
    return text if is_name else str(base / expanded(text))


def _mount(text: str, base: Path) -> str:
    source, colon, target = text.partition(":")
    return f"{base / expanded(source)}{colon}{target}" if source else text
