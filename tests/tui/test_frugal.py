"""A widget is rendered where it shows, and the picture is Textual's own."""

from __future__ import annotations

import pytest
from textual._compositor import Compositor
from textual.app import App, ComposeResult
from textual.containers import Vertical
from textual.geometry import Region
from textual.strip import Strip
from textual.widgets import Static

from gptoss_tui.screens.base import Steady
from gptoss_tui.screens.home import HomeScreen
from gptoss_tui.screens.monitor import MonitorScreen
from gptoss_tui.screens.setup import SetupScreen
from tests.tui.doubles import a_full_run, settled, until


class Counting(Static):
    """Notes the rows that were asked of it."""

    def __init__(self, text: str, **arguments: str) -> None:
        super().__init__(text, **arguments)
        self.asked: list[int] = []

    def render_lines(self, crop: Region) -> list[Strip]:
        self.asked += crop.line_range
        return super().render_lines(crop)


class Covered(Steady):
    """Two texts over one another, the upper one a row shorter, and a row of its own below."""

    def compose(self) -> ComposeResult:
        yield Counting("a\nb\nc\nd", id="below")
        yield Counting("A\nB\nC", id="above")


async def test_of_a_covered_widget_only_the_rows_that_show_are_rendered():
    class OneScreen(App[None]):
        CSS = "Covered { layers: low high; } #below { layer: low; height: 4; } #above { layer: high; height: 3; }"

        def get_default_screen(self) -> Covered:
            return Covered()

    app = OneScreen()
    async with app.run_test(size=(10, 6)) as pilot:
        below, above = app.screen.query_one("#below", Counting), app.screen.query_one("#above", Counting)
        await until(pilot, lambda: below.asked and above.asked)
        assert set(below.asked) == {3} and set(above.asked) == {0, 1, 2}
        above.display = False
        await until(pilot, lambda: set(below.asked) == {0, 1, 2, 3})
        assert [strip.text.strip() for strip in app.screen._compositor.render_strips()] == ["a", "b", "c", "d", "", ""]


def rows(chops) -> list[list[tuple[str, object]]]:
    """Every cell's letter and style, row by row."""
    return [
        [(letter, segment.style) for strip in line.values() for segment in strip for letter in segment.text]
        for line in chops
    ]


@pytest.mark.parametrize("size", [(80, 24), (130, 40), (30, 8)])
@pytest.mark.parametrize("place", ["home", "setup", "monitor"])
async def test_the_picture_is_the_one_that_textual_draws(make_app, runs_root, place, size):
    run = a_full_run(runs_root).run
    screens = {"home": HomeScreen, "setup": SetupScreen, "monitor": lambda: MonitorScreen(run)}
    app = make_app(screens[place])
    async with app.run_test(size=size) as pilot:
        for key in ("tab", "down", "f1", "down"):
            await settled(pilot)
            for screen in app.screen_stack:
                compositor, everything = screen._compositor, screen.size.region
                ours = compositor._render_chops(everything, lambda y: True)
                theirs = Compositor._render_chops(compositor, everything, lambda y: True)
                assert rows(ours) == rows(theirs)
            await pilot.press(key)


async def test_moving_the_focus_leaves_the_rest_of_the_screen_alone():
    class TwoFields(Steady):
        def compose(self) -> ComposeResult:
            with Vertical():
                for name in ("one", "two", "three"):
                    field = Counting(name, id=name)
                    field.can_focus = True
                    yield field

    class OneScreen(App[None]):
        def get_default_screen(self) -> TwoFields:
            return TwoFields()

    app = OneScreen()
    async with app.run_test(size=(20, 10)) as pilot:
        one, two, three = (app.screen.query_one(f"#{name}", Counting) for name in ("one", "two", "three"))
        one.focus()
        await until(pilot, lambda: one.has_focus and three.asked)
        await settled(pilot)
        full = app.screen._compositor.render_full_update
        calls: list[bool] = []
        app.screen._compositor.render_full_update = lambda **arguments: calls.append(True) or full(**arguments)
        two.focus()
        await until(pilot, lambda: two.has_focus)
        await settled(pilot)
        assert not calls
