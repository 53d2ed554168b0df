"""What is on the terminal, cell by cell, so that only what differs is sent: over a slow line bytes are what is felt.

Textual 8.2 (`LayoutUpdate` and `ChopsUpdate` in _compositor.py) sends all it painted anew, changed or not, from the
left edge of the widget on, and names both colours for every run of text. Rows that moved up or down together, as a
log's do, are moved by the terminal itself where that takes fewer bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import compress, groupby
from operator import itemgetter, ne

from rich.color import ColorSystem
from rich.console import Console
from textual._compositor import ChopsUpdate, CompositorUpdate, LayoutUpdate
from textual.strip import Strip

from gptoss_tui.pen import Cell, Look, Pen, cells_of, goes_with, is_plain

type Painted = tuple[int, int, Strip]
"""Row and column of the screen, and what was painted there."""

type _Piece = tuple[int, int, int, Look | None]
"""Row, first cell, the one behind the last, and their look, but for spaces that go with it."""

_UNKNOWN: Cell = ("", None)
_SHORT_GAP = 4
"""So few cells that did not change are sent again, where they need no other colour: a jump takes more bytes."""
_FEW_PIECES = 400
"""Beyond so many pieces their best order is not looked for."""
_LEAST_MOVED = 3
"""Rows that moved together; for fewer the terminal is not asked to move anything."""


class _Line(list[Cell]):
    """The cells of one row, which stay as they are once it was painted."""

    @cached_property
    def is_plain(self) -> bool:
        return is_plain(self)


class Glass:
    """The memory of one terminal. It must be told when something else may have written there."""

    def __init__(self) -> None:
        self._rows: list[_Line] = []

    def forget(self) -> None:
        """What is on the terminal is not known any more: all that comes is sent."""
        self._rows = []

    def over(self, update: object) -> object:
        """`update` as a `Difference` to what is there; what cannot be told so is sent as it is."""
        if isinstance(update, LayoutUpdate):
            return Difference(self, update.region.right, update.region.bottom, lambda: _of_layout(update))
        if isinstance(update, ChopsUpdate):
            width = max((ends[-1] for ends in update.chop_ends if ends), default=0)
            return Difference(self, width, len(update.chops), lambda: _of_chops(update))
        if update is not None:
            self.forget()
        return update

    def write(self, width: int, height: int, painted: Iterable[Painted], colours: ColorSystem) -> str:
        """What to send for what was painted on a screen of this size; from then on it counts as shown."""
        if len(self._rows) != height or any(len(row) != width for row in self._rows[:1]):
            self._rows = [_Line([_UNKNOWN] * width) for _ in range(height)]
        after = list(self._rows)
        for y, x, strip in painted:
            if not 0 <= y < height:
                continue
            if after[y] is self._rows[y]:
                after[y] = _Line(after[y])
            cells = cells_of(strip, colours)
            after[y][x : x + len(cells)] = cells[: width - x]
        changed = [y for y, (old, new) in enumerate(zip(self._rows, after, strict=True)) if old != new]
        sent = _moves(self._rows, after, changed)
        self._rows = after
        return sent


class Difference(CompositorUpdate):
    """An update that is compared with the glass at the moment when it is written."""

    def __init__(self, glass: Glass, width: int, height: int, painted: Callable[[], Iterable[Painted]]) -> None:
        self._glass = glass
        self._size = width, height
        self._painted = painted
        self._sent: str | None = None

    def render_segments(self, console: Console) -> str:
        """What to send, empty when all of it is shown already."""
        if self._sent is None:
            colours = console._color_system or ColorSystem.TRUECOLOR
            self._sent = self._glass.write(*self._size, self._painted(), colours)
        return self._sent


def _of_layout(update: LayoutUpdate) -> Iterator[Painted]:
    for y, line in enumerate(update.strips, update.region.y):
        x = update.region.x
        for strip in line:
            yield y, x, strip
            x += strip.cell_length


def _of_chops(update: ChopsUpdate) -> Iterator[Painted]:
    for y, first, last in update.spans:
        for end, (x, strip) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
            if strip is not None and x < last and end > first:
                start = max(x, first)
                yield y, start, strip.crop(start - x, min(end, last) - x)


def _moves(before: list[_Line], after: list[_Line], changed: list[int]) -> str:
    """What changes `before` into `after`: the cells that differ, or a move of rows and then the cells that differ."""
    if (found := _shift(before, after, changed)) is None:
        return _painted(after, _differences(before, after, changed))
    top, bottom, by = found
    unknown = _Line([_UNKNOWN] * len(before[0]))
    if by > 0:
        moved = [*before[:top], *before[top + by : bottom + 1], *[unknown] * by, *before[bottom + 1 :]]
        # Index and reverse index, and no "scroll up", which the Linux console does not know.
        order = f"\x1b[{bottom + 1};1H" + "\x1bD" * by
    else:
        moved = [*before[:top], *[unknown] * -by, *before[top : bottom + 1 + by], *before[bottom + 1 :]]
        order = f"\x1b[{top + 1};1H" + "\x1bM" * -by
    order = f"\x1b[{top + 1};{bottom + 1}r{order}\x1b[r"
    inside = range(top, bottom + 1)
    around = _differences(before, after, [y for y in changed if y not in inside])
    here = _differences(before, after, [y for y in changed if y in inside])
    left = _differences(moved, after, inside)
    if _bytes(_drawn(after, here)) <= _bytes(order + _drawn(after, left)):
        return _painted(after, sorted([*around, *here], key=itemgetter(0, 1)))
    return order + _painted(after, sorted([*around, *left], key=itemgetter(0, 1)))


def _bytes(text: str) -> int:
    return len(text.encode())


def _shift(before: list[_Line], after: list[_Line], changed: list[int]) -> tuple[int, int, int] | None:
    """First and last row of what moved up (or, below zero, down) by a number of rows; None when nothing did."""
    if len(changed) < _LEAST_MOVED:
        return None
    told = [y for y in changed if any(letter != " " for letter, _ in after[y])]
    places: dict[tuple[Cell, ...], int] = {tuple(before[y]): y for y in changed}
    moved = [(y, places[key] - y) for y in told if (key := tuple(after[y])) in places]
    if not moved:
        return None
    ((by, votes),) = Counter(by for _, by in moved).most_common(1)
    rows = [y for y, one in moved if one == by]
    top, bottom = min(rows) + min(0, by), max(rows) + max(0, by)
    is_known = all(_UNKNOWN not in after[y] for y in range(top, bottom + 1))
    return (top, bottom, by) if votes >= _LEAST_MOVED and is_known else None


def _differences(before: list[_Line], after: list[_Line], rows: Iterable[int]) -> list[_Piece]:
    """The cells of these rows that differ."""
    return [
        piece for y in rows for start, stop in _runs(before[y], after[y]) for piece in _pieces(after, y, start, stop)
    ]


def _painted(rows: list[_Line], pieces: list[_Piece]) -> str:
    """The pieces in the order that takes fewer bytes."""
    drawn = _drawn(rows, pieces)
    if 1 < len(pieces) < _FEW_PIECES:
        # Naming a colour takes more bytes than a jump: draw all that has the same one after the other.
        order = {look: place for place, (*_, look) in reversed(list(enumerate(pieces)))}
        return min(drawn, _drawn(rows, sorted(pieces, key=lambda piece: order[piece[3]])), key=_bytes)
    return drawn


def _pieces(rows: list[_Line], y: int, start: int, stop: int) -> Iterator[_Piece]:
    """A run of cells, divided where the look changes; a space goes with what stands before it."""
    row, look = rows[y], rows[y][start][1]
    for x in range(start, stop):
        letter, one = row[x]
        if one is look or (letter == " " and goes_with(one, look)):
            continue
        if not any(cell[0] != " " for cell in row[start:x]) and goes_with(look, one):
            look = one  # only spaces so far
            continue
        yield y, start, x, look
        start, look = x, one
    yield y, start, stop, look


def _drawn(rows: list[_Line], pieces: Iterable[_Piece]) -> str:
    """The pieces in this order."""
    pen, parts, here = Pen(), [], (-1, -1)
    for y, start, stop, _ in pieces:
        if here != (y, start):
            # The column by its number: a letter that the terminal draws wider than we think shifts nothing for good.
            parts.append(f"\x1b[{start + 1}G" if here[0] == y else f"\x1b[{y + 1};{start + 1}H")
        parts.append(pen.draw(rows[y][start:stop]))
        here = (y, stop)
    return "".join(parts) + pen.lift()


def _runs(before: _Line, after: _Line) -> list[tuple[int, int]]:
    """Where two rows differ, as first cell and the one behind the last."""
    if before == after:
        return []
    if not (before.is_plain and after.is_plain):
        # Letters of two cells, or of none, may shift what is behind them: such a row is sent whole.
        known = groupby(range(len(after)), lambda x: after[x] != _UNKNOWN)
        return [(cells[0], cells[-1] + 1) for is_known, run in known if is_known and (cells := list(run))]
    runs: list[tuple[int, int]] = []
    for x in compress(range(len(after)), map(ne, before, after)):
        if runs and (x == runs[-1][1] or _is_cheap(after, runs[-1][1], x)):
            runs[-1] = (runs[-1][0], x + 1)
        else:
            runs.append((x, x + 1))
    return runs


def _is_cheap(row: list[Cell], start: int, stop: int) -> bool:
    """True when sending the cells from `start` to `stop` again takes no more bytes than jumping over them."""
    look = row[start - 1][1]
    return stop - start <= _SHORT_GAP and all(cell[1] is look and cell[0].isascii() for cell in row[start:stop])
