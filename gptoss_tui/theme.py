"""Colours: our own themes, the few shades that every theme gets, and none at all for NO_COLOR."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from rich.color import Color as RichColour
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.theme import BUILTIN_THEMES, Theme

from engine.paths import make_own, state_root, write_atomic

DEFAULT, MONOCHROME = "cockpit", "cockpit-monochrome"

THEMES = (
    Theme(
        name="cockpit",
        primary="#5fb4c9",
        secondary="#8aa9d6",
        accent="#e3b568",
        success="#86c07a",
        warning="#e3b568",
        error="#e5737b",
        foreground="#d3dae1",
        background="#12161b",
        surface="#181d23",
        panel="#20272f",
        variables={"footer-key-foreground": "#5fb4c9", "input-selection-background": "#5fb4c9 35%"},
    ),
    Theme(
        name="cockpit-light",
        primary="#0f7086",
        secondary="#3a5f97",
        accent="#9a6200",
        success="#2f7d32",
        warning="#9a6200",
        error="#b3333f",
        foreground="#20262c",
        background="#f6f7f8",
        surface="#eceff1",
        panel="#dfe4e8",
        dark=False,
        variables={"footer-key-foreground": "#0f7086"},
    ),
    # Blue against orange, told apart with every common form of colour blindness.
    Theme(
        name="cockpit-colour-blind",
        primary="#56b4e9",
        secondary="#0072b2",
        accent="#f0e442",
        success="#56b4e9",
        warning="#f0e442",
        error="#e69f00",
        foreground="#dddddd",
        background="#111418",
        surface="#181c21",
        panel="#21262d",
        variables={"footer-key-foreground": "#56b4e9"},
    ),
    # Every colour is the terminal's own default; weight and reversal do the work.
    Theme(
        name=MONOCHROME,
        ansi=True,
        primary="ansi_default",
        secondary="ansi_default",
        warning="ansi_default",
        error="ansi_default",
        success="ansi_default",
        accent="ansi_default",
        foreground="ansi_default",
        background="ansi_default",
        surface="ansi_default",
        panel="ansi_default",
        boost="ansi_default",
        variables={
            **BUILTIN_THEMES["ansi-dark"].variables,
            **dict.fromkeys(("scrollbar", "scrollbar-hover", "scrollbar-active"), "ansi_bright_black"),
            **dict.fromkeys(
                (
                    "scrollbar-background",
                    "scrollbar-background-hover",
                    "scrollbar-background-active",
                    "scrollbar-corner-color",
                ),
                "ansi_default",
            ),  # fmt: skip
            "block-cursor-text-style": "reverse",
            "input-cursor-text-style": "reverse",
        },
    ),
)


def kept(path: Path | None = None) -> str:
    """The theme that was chosen last, empty when none was."""
    try:
        return (path or _kept_path()).read_text(encoding="utf-8")[:100].strip()
    except (OSError, UnicodeDecodeError):
        return ""


def keep(name: str, path: Path | None = None) -> None:
    """Remember a theme for the next start. Raises OSError."""
    path = path or _kept_path()
    make_own(path.parent)
    write_atomic(path, name)


def _kept_path() -> Path:
    return state_root() / "theme"


def wants_no_colour(environment: Mapping[str, str] | None = None) -> bool:
    """True when NO_COLOR is set and not empty (https://no-color.org)."""
    return bool((os.environ if environment is None else environment).get("NO_COLOR"))


def shades(variables: Mapping[str, str], *, is_plain: bool) -> dict[str, str]:
    """The shades our stylesheets use beside a theme's own: `$muted`, `$rule` and `$band`."""
    if is_plain:
        return dict.fromkeys(("muted", "rule", "band", "cursor-row"), "ansi_default")
    background, foreground = Color.parse(variables["background"]), Color.parse(variables["foreground"])
    primary = Color.parse(variables["primary"])
    return {
        "muted": background.blend(foreground, 0.58).hex,
        "rule": background.blend(foreground, 0.24).hex,
        "band": background.blend(primary, 0.38).hex,
        "cursor-row": background.blend(primary, 0.24).hex,
    }


def palette(variables: Mapping[str, str], *, is_plain: bool) -> dict[str, Style]:
    """The styles that canvases name. Without colour, weight and reversal tell what colour tells elsewhere."""
    if is_plain:
        plain = {"muted": "dim", "rule": "dim", "band": "dim", "cursor": "reverse", "selected": "reverse"}
        return {name: Style.parse(plain.get(name, "bold" if bold else "none")) for name, (_, _, bold) in _INKS.items()}

    def colour(name: str) -> RichColour | None:
        return Color.parse(variables[name]).rich_color if name else None

    return {
        name: Style(color=colour(ink), bgcolor=colour(paper), bold=bold or None)
        for name, (ink, paper, bold) in _INKS.items()
    }


_INKS = {
    "title": ("foreground", "", True),
    "text": ("foreground", "", False),
    "strong": ("foreground", "", True),
    "muted": ("muted", "", False),
    "rule": ("rule", "", False),
    "accent": ("primary", "", True),
    "good": ("success", "", False),
    "warning": ("warning", "", False),
    "bad": ("error", "", True),
    "line": ("primary", "", False),
    "band": ("band", "", False),
    "mark": ("accent", "", True),
    "cursor": ("background", "accent", False),
    "selected": ("", "cursor-row", False),
}
"""Foreground, background and weight of every style, as variables of the theme."""


class NoColourFilter(LineFilter):
    """Takes every colour out of what is written; bold, dim, underline and reverse stay.

    Textual's own filters for NO_COLOR write greys, or black on black.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(text, style and _without_colour(style), control) for text, style, control in segments]


@lru_cache(1024)
def _without_colour(style: Style) -> Style:
    return style.without_color
