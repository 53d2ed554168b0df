"""Columns of values to terminal cells: a smoothed line over the dim band of the raw values.

On noise the raw band alone is a solid block, and the line alone hides the spikes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from engine.monitor.scale import Scale
from engine.monitor.series import Column
from gptoss_tui.glyphs import Charset


@dataclass(frozen=True)
class Dots:
    """How one cell is divided into dots, and the character for each combination."""

    across: int
    down: int
    bits: tuple[tuple[int, ...], ...]
    """Bit of the dot at [across][down]."""
    characters: str
    """The character for each sum of bits."""

    @cached_property
    def masks(self) -> list[list[list[int]]]:
        """The bits from one dot down to another, at [across][first][last]; none where the last is above."""
        down = range(self.down)
        return [[[sum(column[first : last + 1]) for last in down] for first in down] for column in self.bits]


_DOTS = {
    # The dot numbering of the Unicode Braille block.
    Charset.BRAILLE: Dots(
        2, 4, ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80)), "".join(map(chr, range(0x2800, 0x2900)))
    ),
    Charset.BLOCKS: Dots(1, 2, ((1, 2),), " ▀▄█"),
    Charset.ASCII: Dots(1, 2, ((1, 2),), " '.:"),
}


def dots_for(charset: Charset) -> Dots:
    return _DOTS[charset]


def smoothed(columns: list[Column | None], radius: int) -> list[float | None]:
    """The mean of each column and its `radius` filled neighbours on both sides."""
    filled = [index for index, column in enumerate(columns) if column is not None]
    means = [column.mean for column in columns if column is not None]
    result: list[float | None] = [None] * len(columns)
    for place, index in enumerate(filled):
        # Shrinking at both ends alike keeps the line from leaning at the ends.
        reach = min(radius, place, len(means) - 1 - place)
        window = means[place - reach : place + reach + 1]
        result[index] = sum(window) / len(window)
    return result


def draw(
    columns: list[Column | None], line: list[float | None], scale: Scale, size: tuple[int, int], dots: Dots
) -> tuple[list[bytearray], list[bytearray]]:
    """The line and the band as rows of bit sums, `size` cells wide and high."""
    width, height = size
    layers = [bytearray(width) for _ in range(height)], [bytearray(width) for _ in range(height)]
    bottom = height * dots.down - 1

    def row_of(value: float) -> int:
        return bottom - round(scale.position(value) * bottom)

    for x, column in enumerate(columns):
        if column is not None:
            _fill(layers[1], x, row_of(column.high), row_of(column.low), dots)
    previous: tuple[int, int] | None = None
    for x, value in enumerate(line):
        if value is None:
            continue
        y = row_of(value)
        _join(layers[0], previous or (x, y), (x, y), dots)
        previous = (x, y)
    return layers


def _join(rows: list[bytearray], start: tuple[int, int], end: tuple[int, int], dots: Dots) -> None:
    """A straight line; each column is filled from where the one before it ended."""
    (x0, y0), (x1, y1) = start, end
    before = y0
    for x in range(x0, x1 + 1):
        y = y1 if x1 == x0 else round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
        top, low = min(before, y), max(before, y)
        if low > top:  # the column before holds the first of these dots already
            top, low = (top + 1, low) if before < y else (top, low - 1)
        _fill(rows, x, top, low, dots)
        before = y


def _fill(rows: list[bytearray], x: int, top: int, low: int, dots: Dots) -> None:
    cell, across = divmod(x, dots.across)
    (first, above), (last, below) = divmod(top, dots.down), divmod(low, dots.down)
    masks, bottom = dots.masks[across], dots.down - 1
    for row in range(first, last + 1):
        rows[row][cell] |= masks[above if row == first else 0][below if row == last else bottom]
