"""A preset as one line of a list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_tui import words
from gptoss_tui.widgets.canvas import Row, cut, fill, width_of
from gptoss_tui.widgets.choices import Item

if TYPE_CHECKING:
    from engine.presets import Preset


_WIDE = 90


def preset_item(preset: Preset, width: int, name_width: int) -> Item:
    """Name and title at the left; model, goal and length at the right."""
    settings = preset.settings
    # Where there is little room the title says it better.
    model: Row = ((f"{settings.model.name:>13}", "text"),) if width >= _WIDE else ()
    right: Row = (
        *model,
        (f"{settings.training.goal:>10}", "muted"),
        (f"{words.count(settings.training.iterations):>7} it ", "muted"),
    )
    left: Row = ((f"{preset.name:<{name_width}}", "strong"), ("  ", ""))
    room = max(0, width - width_of(left) - width_of(right) - 1)
    title: Row = ((words.shorten(("yours: " if preset.is_user else "") + preset.title, room), "muted"),)
    return Item(preset.name, cut(fill((*left, *title), right, width), width))
