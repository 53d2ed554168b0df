"""Text from elsewhere, fit to be shown: it cannot drive a terminal, hide, or turn round the words beside it."""

from __future__ import annotations

import re

MARK = "�"
"""Stands for what was taken out."""

# C0 but tab and newline, DEL and C1 (ESC begins OSC 52 and DCS, and so does U+009B alone); what turns or hides
# text (Unicode TR 9 and TR 36); half surrogates, which no terminal can be sent.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_MOST_ACCENTS = 4
"""On one letter; floods of them are drawn over the lines around. No language of these blocks needs more."""
_ACCENTS = "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
_FLOOD = re.compile(f"({_ACCENTS}{{{_MOST_ACCENTS}}}){_ACCENTS}+")


def clean(text: str, mark: str = MARK) -> str:
    """`text` with `mark` for each character that is more than seen; tabs and line ends stay."""
    if text.isascii() and text.isprintable():
        return text
    return _FLOOD.sub(r"\1", _HIDDEN.sub(mark, text))
