"""Rows of spans: fitting them, and finding what changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import App, ComposeResult
from textual.containers import Vertical
from textual.geometry import Size

from gptoss_tui.widgets.canvas import Canvas, Row, change, cut, fill, heading, width_of
from gptoss_tui.widgets.note import wrap
from tests.tui.doubles import until

STYLES = st.sampled_from(["", "muted", "strong", "muted+selected"])
ROWS = st.lists(st.tuples(st.text("ab ·━日", max_size=8), STYLES), max_size=6).map(tuple)


def shown(row: Row, width: int) -> list[tuple[str, str]]:
    cells = [(letter, style) for text, style in row for letter in text]
    return cells + [(" ", "")] * (width - len(cells))


def test_the_two_ends_of_a_row_keep_their_places():
    assert fill((("left", ""),), (("right", ""),), 12) == (("left", ""), ("   ", ""), ("right", ""))


def test_what_does_not_fit_is_cut_from_the_left_part():
    assert "".join(text for text, _ in fill((("a long name", ""),), ((" 12", ""),), 8)) == "a lo… 12"


@given(ROWS, st.integers(0, 30))
def test_a_cut_row_fits(row, width):
    assert width_of(cut(row, width)) <= max(width, 0)


@given(ROWS, ROWS, st.integers(0, 40))
def test_a_filled_row_is_never_too_wide(left, right, width):
    assert width_of(fill(left, right, width)) <= width


@given(st.lists(st.tuples(st.text("ab ", max_size=8), STYLES), max_size=6).map(tuple), ROWS)
def test_repainting_the_changes_gives_the_new_row(before, after):
    width = max(width_of(before), width_of(after))
    if any(not text.isascii() for text, _ in after):
        after = tuple((text.replace("日", "x"), style) for text, style in after)
    screen, wanted = shown(before, width), shown(after, width)
    start, length = change(before, after)
    screen[start : start + length] = wanted[start : start + length]
    # A space looks the same in every style but those with a background of their own.
    visible = [(a, s if a != " " or s.endswith("selected") else "") for a, s in screen]
    assert visible == [(a, s if a != " " or s.endswith("selected") else "") for a, s in wanted]


def test_what_stands_on_both_sides_of_a_change_is_not_painted_again():
    before = (("loss ", "muted"), ("2.31", "strong"), (" at ", ""), ("12:00", "muted"))
    after = (("loss ", "muted"), ("2.32", "strong"), (" at ", ""), ("12:00", "muted"))
    assert change(before, after) == (5, 4)


def test_what_stands_behind_a_change_of_another_width_is_painted_again():
    assert change((("日本", ""), ("!", "bad")), (("日x", ""), ("!", "bad"))) == (0, 5)


def test_headings_tell_the_focus_by_shape():
    assert heading("log", (), 8)[1][0] == "────"
    assert heading("log", (), 8, is_focused=True)[1][0] == "━━━━"


@given(st.text("ab c日", max_size=60), st.integers(4, 20))
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    lines = wrap(text, width)
    assert all(width_of(((line, ""),)) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text", ["", " ", "   "])
def test_blank_text_is_one_line(text):
    assert len(wrap(text, 10)) == 1


def test_an_indented_text_stays_so():
    assert wrap("  --option value", 12) == ["  --option", "  value"]


class Lines(Canvas, can_focus=True):
    """A canvas as the real ones are: it paints what fits, and tells its focus."""

    def redraw(self) -> None:
        if self.content_size.width:
            self.paint([(("focused" if self.has_focus else "not focused", ""),)])


class OnePlace(App[None]):
    CSS = "Lines { height: 3; }"

    def compose(self) -> ComposeResult:
        yield Vertical(id="place")


async def test_a_canvas_that_textual_forgot_to_tell_its_size_is_painted():
    app = OnePlace()
    async with app.run_test(size=(40, 10)) as pilot:
        await pilot.pause()
        lines = Lines()
        await app.query_one("#place").mount(lines)
        await until(pilot, lambda: lines.text == "not focused")
        # What Textual 8.2.8 leaves behind when a region is asked for between a change of the layout and its
        # reflow: a widget that has a size and was not told it.
        lines._told_size = Size()
        lines.paint([])
        lines.refresh()
        await until(pilot, lambda: lines.text == "not focused")


async def test_a_canvas_tells_its_focus_at_once():
    app = OnePlace()
    async with app.run_test(size=(40, 10)) as pilot:
        await app.query_one("#place").mount(Lines())
        lines = app.query_one(Lines)
        await until(pilot, lambda: lines.text == "not focused")
        lines.focus()
        await until(pilot, lambda: lines.text == "focused")
        app.set_focus(None)
        await until(pilot, lambda: lines.text == "not focused")
