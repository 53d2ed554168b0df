"""What the settings choose to learn from: the files, and how to take the data out of their records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.data import sources
from engine.data.inspect import shape_of
from engine.data.shape import TEXT, Shape
from engine.data.sources import SourceFile
from engine.errors import SettingsError
from engine.finetune_settings import GOALS
from engine.paths import expanded
from engine.settings import HUB_PREFIX, Settings


def learns_from_chats(settings: Settings) -> bool:
    """True for the goals that learn answers."""
    return settings.training.goal in GOALS


def files(settings: Settings, base: Path = Path()) -> list[SourceFile]:
    """The files of source `text`, `chat` or `sample` (text); relative paths count from `base`.

    Raises NotFoundError and SettingsError.
    """
    data = settings.data
    if data.source == "sample":
        return sources.sample()
    if not data.path:
        raise SettingsError(f"data.path: data.source is {data.source}, and no path is given",
                            "--set data.path=PATH of a file, a directory, or a quoted pattern")  # fmt: skip
    is_on_hub = data.path.startswith(HUB_PREFIX)
    return sources.find(data.path if is_on_hub else str(base / expanded(data.path)))


def shape(settings: Settings, found: Sequence[SourceFile]) -> Shape:
    """What the records hold. Raises SettingsError when it is not what the goal learns from."""
    made = shape_of(found, settings.data.column)
    goal, where = settings.training.goal, settings.data.path
    if learns_from_chats(settings) and made.kind == TEXT:
        raise SettingsError(
            f"data.path: {where} holds text in {made.column!r} and no chats",
            'a chat is {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}, or a prompt with its answer',
        )
    if not learns_from_chats(settings) and made.kind != TEXT:
        raise SettingsError(
            f"data.path: {where} holds chats in {', '.join(map(repr, made.columns))}, and the goal {goal} learns text",
            "--set training.goal=sft or lora, or name a column of text with data.column",
        )
    return made
