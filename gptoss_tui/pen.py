"""Cells of a terminal, and the control codes that draw them, naming only what differs from the cell before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from rich.cells import get_character_cell_size, split_graphemes
from rich.color import ColorSystem
from rich.style import Style
from textual.strip import Strip


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """What a style does to a letter, as parameters of SGR. There is one of each, so `is` compares them."""

    attributes: str
    foreground: str
    background: str
    marks_space: bool
    """True when more than its background shows on a space: a line, or the two colours exchanged."""

    @property
    def codes(self) -> str:
        """All of it, from a terminal without any style."""
        colours = [code for code, default in ((self.foreground, "39"), (self.background, "49")) if code != default]
        return ";".join(filter(None, ["0", self.attributes, *colours]))


type Cell = tuple[str, Look | None]
"""A letter and its look; an empty letter is the second half of a wide one, and no look is an unknown cell."""


@lru_cache(4096)
def look_of(style: Style, colours: ColorSystem) -> Look:
    """The look of a style in a terminal with so many colours."""
    attributes = style.without_color._make_ansi_codes(colours)
    foreground = _code(style, colours, is_foreground=True)
    background = _code(style, colours, is_foreground=False)
    marks = (style.reverse, style.underline, style.underline2, style.strike, style.overline, style.blink)
    return _look(attributes, foreground, background, any(marks))


_look = lru_cache(4096)(Look)


def _on_space(look: Look) -> Look:
    return look if look.marks_space else _look("", "39", look.background, False)


def _code(style: Style, colours: ColorSystem, *, is_foreground: bool) -> str:
    colour = style.color if is_foreground else style.bgcolor
    if colour is None:
        return "39" if is_foreground else "49"
    return ";".join(colour.downgrade(colours).get_ansi_codes(foreground=is_foreground))


@lru_cache(4096)
def _is_simple(text: str) -> bool:
    return text.isascii() or all(get_character_cell_size(letter) == 1 for letter in text)


def cells_of(strip: Strip, colours: ColorSystem) -> list[Cell]:
    """The cells of a strip."""
    cells: list[Cell] = []
    for text, style, control in strip:
        if control is not None:
            continue
        look = look_of(style or Style.null(), colours)
        blank = _on_space(look)
        if _is_simple(text):
            cells += [(letter, blank if letter == " " else look) for letter in text]
            continue
        # By graphemes, as a strip counts its cells: a sign of several letters is as wide as one.
        for start, stop, width in split_graphemes(text)[0]:
            if not width and cells:
                cells[-1] = (cells[-1][0] + text[start:stop], cells[-1][1])
            elif width:
                cells += [(text[start:stop], look), *[("", look)] * (width - 1)]
    return cells


def goes_with(blank: Look | None, look: Look | None) -> bool:
    """True when a space of the look `blank` can be drawn with `look`."""
    if blank is None or look is None:
        return False
    return blank.background == look.background and not (blank.marks_space or look.marks_space)


def is_plain(row: Sequence[Cell]) -> bool:
    """True when every cell holds one letter of its own; cells that are not known do not count."""
    if {len(letter) for letter, _ in row} == {1}:  # nearly every row, and asked at every change of one
        return True
    return all(len(letter) == 1 or look is None for letter, look in row)


_NO_LOOK = _look("", "39", "49", False)


class Pen:
    """Draws cells one after the other, wherever the cursor is."""

    def __init__(self) -> None:
        self._look = _NO_LOOK

    def draw(self, cells: Sequence[Cell]) -> str:
        """The cells, from the style of what was drawn last."""
        parts: list[str] = []
        for letter, look in cells:
            if look is not None and look is not self._look:
                parts.append(self._switch(look, is_blank=letter == " "))
            parts.append(letter)
        return "".join(parts)

    def lift(self) -> str:
        """Back to the terminal's own style."""
        is_changed, self._look = self._look is not _NO_LOOK, _NO_LOOK
        return "\x1b[0m" if is_changed else ""

    def _switch(self, look: Look, *, is_blank: bool) -> str:
        before = self._look
        if is_blank and not (before.marks_space or look.marks_space):
            # Letter and colour of the next text are most often those before the space.
            look = _look(before.attributes, before.foreground, look.background, False)
        self._look = look
        if look is before:
            return ""
        pairs = ((before.foreground, look.foreground), (before.background, look.background))
        changed = [_attribute_codes(before, look), *(new for old, new in pairs if old != new)]
        return f"\x1b[{min(';'.join(filter(None, changed)), look.codes, key=len)}m"


_OFF = {"1": "22", "2": "22", "3": "23", "4": "24", "5": "25", "7": "27", "9": "29"}
"""What ends an attribute. Bold and dim end together."""


@lru_cache(256)
def _attribute_codes(before: Look, after: Look) -> str:
    """From one look's attributes to another's; the whole of it where single ones cannot be ended."""
    old, new = set(before.attributes.split(";")) - {""}, set(after.attributes.split(";")) - {""}
    ended = {_OFF.get(one, "") for one in old - new}
    if "" in ended or any(_OFF.get(one) in ended for one in new):
        return f"{after.codes};"
    return ";".join([*sorted(ended), *sorted(new - old)])
