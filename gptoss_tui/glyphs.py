"""Which characters the terminal can show: Braille, block characters, or ASCII alone.

Widgets write Unicode; for terminals without it one filter at the end of the pipeline turns
every character into an ASCII one of the same width, so no widget has two forms.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from enum import StrEnum

from rich.cells import split_graphemes
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from engine import visible
from engine.run.state import Status


class Charset(StrEnum):
    """What the terminal can show, the richest first."""

    BRAILLE = "braille"
    BLOCKS = "blocks"
    ASCII = "ascii"


_BARE_TERMINALS = {"linux", "vt100", "vt220", "cons25"}
"""Consoles whose font has block characters and no Braille."""

STATUS_SHAPES = {
    Status.PENDING: "○",
    Status.RUNNING: "●",
    Status.STOPPING: "◐",
    Status.STOPPED: "■",
    Status.FAILED: "✗",
    Status.FINISHED: "✓",
    Status.LOST: "?",
}
"""State is told by shape and word; colour only repeats it."""

_ASCII = str.maketrans(
    {
        **dict.fromkeys("─━╌╴╶╸╺▔▁═", "-"),
        **dict.fromkeys("│┃║▏▎▕▌▐┊", "|"),
        **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┣┫╋╪", "+"),
        **dict.fromkeys("█▉▊▋▆▇▅▄▃▂▀■●◉", "#"),
        **dict.fromkeys("░▒▓", ":"),
        **dict.fromkeys("○◌◯", "o"),
        **dict.fromkeys("▸▶›❯→⮕", ">"),
        **dict.fromkeys("◂◀‹❮←", "<"),
        **dict.fromkeys("▲△↑▴", "^"),
        **dict.fromkeys("▼▽↓▾", "v"),
        **dict.fromkeys("·•∙", "."),
        "◆": "*", "⏎": "<", "✓": "+", "✗": "x", "×": "x", "◐": "@", "…": "~", "—": "-", "–": "-", "−": "-",
        "“": '"', "”": '"', "‘": "'", "’": "'", "≈": "~", "≤": "<", "≥": ">", "±": "~", "µ": "u",
    }
)  # fmt: skip


def detect_charset(environment: Mapping[str, str] | None = None, encoding: str | None = None) -> Charset:
    """What this terminal can show: $GPTOSS_GLYPHS, else told from the locale and $TERM."""
    environment = os.environ if environment is None else environment
    chosen = environment.get("GPTOSS_GLYPHS", "").lower()
    if chosen in set(Charset):
        return Charset(chosen)
    encoding = encoding or getattr(sys.__stdout__, "encoding", None) or "ascii"
    if not encoding.lower().replace("-", "").startswith("utf8"):
        return Charset.ASCII
    return Charset.BLOCKS if environment.get("TERM", "") in _BARE_TERMINALS else Charset.BRAILLE


def to_ascii(text: str) -> str:
    """`text` in ASCII and of the same width; unknown signs become `?`, one for each of their cells."""
    if text.isascii() or (text := text.translate(_ASCII)).isascii():
        return text
    return "".join(_sign_in_ascii(text[start:stop], width) for start, stop, width in split_graphemes(text)[0])


def _sign_in_ascii(sign: str, width: int) -> str:
    # Of a letter with an accent the letter is left.
    return (sign[0] if sign[0].isascii() else "?" * width).ljust(width)[:width]


_SURROGATE = re.compile("[\ud800-\udfff]")


class AsciiFilter(LineFilter):
    """Turns what is about to be written into ASCII."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(to_ascii(text), style, control) for text, style, control in segments]


class VisibleFilter(LineFilter):
    """Takes out of what is about to be written whatever is more than seen.

    Textual writes the escape sequences that stand in a widget's text as they are. What is taken out has no
    width, so that nothing moves.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [
            Segment(text if control or text.isprintable() and text.isascii() else _visible(text), style, control)
            for text, style, control in segments
        ]


def _visible(text: str) -> str:
    # Half surrogates are the one thing of these that has a width.
    return visible.clean(_SURROGATE.sub("?", text), "")
