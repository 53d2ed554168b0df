"""The cheaper partial updates show the same picture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rich.ansi import AnsiDecoder
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from gptoss_tui.frugal import FrugalUpdate, Pen

STYLES = [
    Style.parse(text)
    for text in ("none", "#ff0000 on #000000", "#00ff00 on #000000", "bold #00ff00 on #000000", "reverse", "on #0000ff")
]
RUNS = st.lists(st.tuples(st.sampled_from(["ab", " ", "   ", "━x"]), st.sampled_from(STYLES)), min_size=1, max_size=8)


def console() -> Console:
    return Console(color_system="truecolor", force_terminal=True, width=80)


def cells(text: str) -> list[tuple[str, object, object, bool, bool]]:
    """What a terminal shows for `text`: letter, colours, bold, reverse."""
    shown = []
    (line,) = AnsiDecoder().decode(text)
    for segment in line.render(console()):
        style = segment.style or Style.null()
        for letter in segment.text:
            reverse = bool(style.reverse)
            # Of a space only the background shows.
            colour = style.color if letter != " " or reverse else None
            shown.append((letter, colour, style.bgcolor, bool(style.bold) and letter != " ", reverse))
    return shown


@given(RUNS)
def test_a_pen_draws_what_the_styles_say(runs):
    strip = Strip([Segment(text, style) for text, style in runs])
    pen = Pen(console())
    drawn = pen.draw(strip) + pen.lift()
    plain = "".join(style.render(text, color_system=console()._color_system) for text, style in runs)
    assert cells(drawn) == cells(plain)
    assert len(drawn) <= len(plain) + len("\x1b[0;m") * len(runs)


def test_one_changed_cell_sends_one_cell():
    strip = Strip([Segment("name ", STYLES[1]), Segment("2.31", STYLES[2]), Segment("    ", STYLES[1])])
    update = FrugalUpdate([{0: strip}], [(0, 8, 9)], [[13]])
    assert update.render_segments(console()) == "\x1b[1;9H\x1b[0;38;2;0;255;0;48;2;0;0;0m1\x1b[0m"


def test_a_hidden_part_of_a_row_is_left_out():
    update = FrugalUpdate([{0: None, 3: Strip([Segment("abc", STYLES[0])])}], [(0, 0, 6)], [[3, 6]])
    assert update.render_segments(console()) == "\x1b[1;4Habc"
