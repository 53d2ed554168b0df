"""What becomes of a set-up that was not finished when another one is begun: nothing replaces it unasked."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from engine.options import text_of
from gptoss_tui import words
from gptoss_tui.bridge import Services
from gptoss_tui.draft import Draft

if TYPE_CHECKING:
    from gptoss_tui.screens.confirm import ConfirmScreen

GO_ON, ANEW, BOTH = "kept", "anew", "both"
_MOST_SHOWN = 6
_LONGEST_START = 50


def beside(begun: Draft) -> Draft | None:
    """The unfinished set-up that `begun` would replace; None where nothing would be lost."""
    kept = Draft.load()
    if kept is None or not kept.is_changed or (kept.settings == begun.settings and not kept.problems):
        return None
    return kept


def account(kept: Draft) -> list[str]:
    """Where it started, and what was changed."""
    lines = [f"{key} = {text_of(value)}" for key, value in kept.changed().items()]
    lines += [f"{key} = {kept.text(key)!r}, which is no value yet" for key in kept.problems]
    told = [f"  {words.shorten(line, 60)}" for line in lines[:_MOST_SHOWN]]
    told += [f"  and {len(lines) - _MOST_SHOWN} more"] if len(lines) > _MOST_SHOWN else []
    return [f"It started from {kept.name or 'the defaults'}; {words.plural(len(lines), 'value')} changed:", *told]


def question(kept: Draft, begun: Draft) -> ConfirmScreen:
    """Which of the two to go on with."""
    from gptoss_tui.screens.confirm import Choice, ConfirmScreen

    then = (
        f"Starting anew from {begun.name or 'the defaults'} replaces it at the first change. "
        "Keep both makes it a preset of yours first."
        + (" What is no value yet is left out then." if kept.problems else "")
    )
    choices = (Choice(GO_ON, "Go on with it"), Choice(BOTH, "Keep both"), Choice(ANEW, "Start anew", is_harmful=True))
    return ConfirmScreen("There is a set-up you did not finish", "\n".join([*account(kept), "", then]), choices)


def keep(kept: Draft, services: Services) -> Path:
    """Make the unfinished set-up a preset of the person's own. Raises SettingsError and OSError."""
    letters = (letter if letter.isascii() and letter.isalnum() else "-" for letter in kept.name[:_LONGEST_START])
    name = f"{''.join(letters).strip('-') or 'set-up'}-unfinished"
    taken = {preset.name for preset in services.presets()}
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return services.save_preset(next(one for one in names if one not in taken), kept.settings)
