"""What is sent to a terminal shows the picture, however little it is; a terminal emulator draws both."""

from __future__ import annotations

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

from gptoss_tui.glass import Glass
from gptoss_tui.pen import cells_of

WIDTH, HEIGHT = 24, 9
STYLES = [
    Style.parse(text)
    for text in (
        "none", "#ff0000 on #000000", "#00ff00 on #000000", "bold #00ff00 on #000000", "reverse", "on #0000ff",
        "underline #ff0000", "italic on #0000ff", "strike", "bold", "dim blue",
    )
]  # fmt: skip
TEXTS = ["ab", " ", "    ", "━x", "⣿⡇", "漢字", "e\u0301", "iteration 17 "]
PLAIN, RED = STYLES[0], STYLES[1]


def console() -> Console:
    return Console(color_system="truecolor", force_terminal=True, width=WIDTH)


def row(*runs: tuple[str, Style]) -> Strip:
    return Strip([Segment(text, style) for text, style in runs]).adjust_cell_length(WIDTH, PLAIN)


def layout(rows: list[Strip]) -> LayoutUpdate:
    return LayoutUpdate([[one] for one in rows], Region(0, 0, WIDTH, len(rows)))


def chops(rows: list[Strip], spans: list[tuple[int, int, int]], cut: int = 7) -> ChopsUpdate:
    """Each row as two widgets that meet at `cut`, but for those with a wide letter there."""
    pieces, ends = [], []
    for one in rows:
        halves = one.divide([cut, WIDTH])
        is_whole = "".join(half.text for half in halves) != one.text
        pieces.append({0: one} if is_whole else dict(zip((0, cut), halves, strict=True)))
        ends.append([WIDTH] if is_whole else [cut, WIDTH])
    return ChopsUpdate(pieces, spans, ends)


class Terminal:
    """A screen, and a glass that remembers it."""

    def __init__(self) -> None:
        self.screen = pyte.Screen(WIDTH, HEIGHT)
        self._stream = pyte.Stream(self.screen)
        self._stream.feed("\x1b[?7l")  # as Textual's driver does
        self.glass = Glass()

    def take(self, update: LayoutUpdate | ChopsUpdate) -> str:
        sent = self.glass.over(update).render_segments(console())
        self._stream.feed(sent)
        return sent

    def spoil(self) -> None:
        """Another program writes all over it."""
        self._stream.feed("\x1b[H" + "\x1b[7mspoilt\x1b[0m\r\n" * 4)

    @property
    def cells(self) -> list[list[tuple[object, ...]]]:
        return [[seen(self.screen.buffer[y][x]) for x in range(WIDTH)] for y in range(HEIGHT)]


def seen(cell: pyte.screens.Char) -> tuple[object, ...]:
    """What a person sees of a cell: of a space without a line only the background."""
    if cell.data == " " and not (cell.reverse or cell.underscore or cell.strikethrough):
        return (" ", cell.bg)
    return tuple(cell)


def picture(rows: list[Strip]) -> list[list[tuple[object, ...]]]:
    """The same rows as Textual sends them, on a terminal of their own."""
    terminal = Terminal()
    terminal._stream.feed("".join(f"\x1b[{y + 1};1H{one.render(console())}" for y, one in enumerate(rows)))
    return terminal.cells


ROWS = st.lists(st.tuples(st.sampled_from(TEXTS), st.sampled_from(STYLES)), min_size=1, max_size=6).map(
    lambda runs: row(*runs)
)
SCREENS = st.lists(ROWS, min_size=HEIGHT, max_size=HEIGHT)
CHANGES = st.one_of(
    st.tuples(st.just("row"), st.integers(0, HEIGHT - 1), ROWS),
    st.tuples(st.just("move"), st.integers(-3, 3), st.lists(ROWS, min_size=3, max_size=3)),
    st.tuples(st.just("cell"), st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1)),
    st.tuples(st.just("all"), st.just(0), SCREENS),
    st.tuples(st.just("spoil"), st.just(0), st.just(0)),
)


def moved(rows: list[Strip], by: int, new: list[Strip]) -> list[Strip]:
    """All but the first and the last row, as a log moves between a title and a line of keys."""
    middle = rows[1:-1]
    middle = [*middle[by:], *new[:by]] if by >= 0 else [*new[:-by], *middle[:by]]
    return [rows[0], *middle, rows[-1]]


def changed(terminal: Terminal, rows: list[Strip], change: tuple[str, int, object]) -> list[Strip]:
    """Make the change on the terminal; returns the rows that it must show."""
    kind, number, value = change
    if kind == "row":
        rows = [*rows[:number], value, *rows[number + 1 :]]
        terminal.take(chops(rows, [(number, 0, WIDTH)]))
    elif kind == "move":
        rows = moved(rows, number, value)
        terminal.take(chops(rows, [(y, 0, WIDTH) for y in range(1, HEIGHT - 1)], cut=11))
    elif kind == "cell" and all(len(letter) == 1 for letter in rows[number].text) and rows[number].text.isascii():
        left, _, right = rows[number].divide([value, value + 1, WIDTH])
        rows = [*rows[:number], Strip.join([left, Strip([Segment("#", RED)]), right]), *rows[number + 1 :]]
        terminal.take(chops(rows, [(number, value, value + 1)]))
    elif kind == "all":
        rows = value
        terminal.take(layout(rows))
    elif kind == "spoil":
        terminal.spoil()
        terminal.glass.forget()
        terminal.take(layout(rows))
    return rows


@settings(deadline=None, max_examples=60)
@given(SCREENS, st.lists(CHANGES, max_size=8))
def test_the_picture_is_what_textual_would_have_sent(rows, changes):
    terminal = Terminal()
    terminal.take(layout(rows))
    for change in changes:
        rows = changed(terminal, rows, change)
        assert terminal.cells == picture(rows)


@pytest.mark.parametrize(
    "text", ["a❤\ufe0fb", "x👨\u200d👩\u200d👧y", "1\ufe0f\u20e3", "👍🏽", "漢\u200d字", "ก\u0e33", "\u0301e\u0301"]
)
def test_a_sign_of_several_letters_takes_the_cells_that_its_strip_counts(text):
    strip = row((text, RED))
    assert len(cells_of(strip, ColorSystem.TRUECOLOR)) == strip.cell_length


def test_what_is_there_already_is_not_sent():
    terminal, rows = Terminal(), [row((f"line {n}", RED)) for n in range(HEIGHT)]
    terminal.take(layout(rows))
    assert terminal.take(layout(rows)) == ""
    terminal.glass.forget()
    assert "line 8" in terminal.take(layout(rows))


def test_one_changed_cell_sends_one_cell():
    terminal, rows = Terminal(), [row(("name ", PLAIN), ("2.30", RED))] * HEIGHT
    terminal.take(layout(rows))
    rows = [row(("name ", PLAIN), ("2.31", RED)), *rows[1:]]
    assert terminal.take(layout(rows)) == "\x1b[1;9H\x1b[38;2;255;0;0;48;2;0;0;0m1\x1b[0m"
    assert terminal.cells == picture(rows)


def test_a_log_that_moves_up_is_moved_by_the_terminal():
    terminal = Terminal()
    lines = [row((f"{n * 7919 % 100_000:05} a line of a log", PLAIN)) for n in range(HEIGHT + 2)]
    terminal.take(layout(lines[:HEIGHT]))
    rows = moved(lines[:HEIGHT], 1, lines[-1:])
    sent = terminal.take(chops(rows, [(y, 0, WIDTH) for y in range(1, HEIGHT - 1)]))
    assert sent.startswith("\x1b[2;8r") and "\x1b[r" in sent and len(sent) < 60
    assert terminal.cells == picture(rows)
    assert terminal.screen.margins is None
    back = moved(rows, -1, lines[1:2])
    assert "\x1bM" in terminal.take(chops(back, [(y, 0, WIDTH) for y in range(1, HEIGHT - 1)]))
    assert terminal.cells == picture(back)


def test_rows_beside_something_that_stays_are_not_moved():
    terminal = Terminal()
    lines = [row((f"{n:<10}", PLAIN), (f"stays {n * 7919}", RED)) for n in range(HEIGHT)]
    terminal.take(layout(lines))
    rows = [row((f"{n + 1:<10}", PLAIN), (f"stays {n * 7919}", RED)) for n in range(HEIGHT)]
    assert "\x1bD" not in terminal.take(chops(rows, [(y, 0, 10) for y in range(HEIGHT)], cut=10))
    assert terminal.cells == picture(rows)


def test_another_size_is_another_terminal():
    terminal, rows = Terminal(), [row((f"line {n}", RED)) for n in range(HEIGHT)]
    terminal.take(layout(rows))
    sent = terminal.take(layout(rows[:-1]))
    assert "line 0" in sent and "line 7" in sent


def test_what_is_no_such_update_makes_the_glass_forget():
    terminal, rows = Terminal(), [row((f"line {n}", RED)) for n in range(HEIGHT)]
    terminal.take(layout(rows))
    assert terminal.glass.over("text") == "text"
    assert "line 3" in terminal.take(layout(rows))
