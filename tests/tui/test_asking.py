"""A question whose answer is carried out: leaving it meanwhile."""

from __future__ import annotations

import threading

from gptoss_tui.screens.asking import AskScreen
from gptoss_tui.screens.home import HomeScreen
from tests.limits import LIMIT_S
from tests.tui.doubles import until


async def test_escape_does_not_pretend_to_take_back_what_is_being_done(make_app):
    begun, end = threading.Event(), threading.Event()
    answers: list[object] = []

    def act(text: str) -> str:
        begun.set()
        assert end.wait(LIMIT_S)
        return text.upper()

    app = make_app(HomeScreen)
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        for key_again in (False, True):
            begun.clear()
            end.clear()
            app.push_screen(AskScreen("Save it?", "as what", act=act, value="mine"), answers.append)
            await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
            await pilot.press("enter")
            await until(pilot, begun.is_set)
            await pilot.press("escape")
            await until(pilot, lambda: "being done" in app.screen.query_one("#note").text)
            if key_again:
                await pilot.press("escape")
                await until(pilot, lambda: isinstance(app.screen, HomeScreen))
                assert any("It goes on" in note.message for note in app._notifications)
            end.set()
            await until(pilot, lambda: isinstance(app.screen, HomeScreen))
    assert answers == ["MINE", None]


async def test_escape_before_leaves_everything_as_it_is(make_app):
    answers: list[object] = []
    app = make_app(HomeScreen)
    async with app.run_test(size=(100, 30)) as pilot:
        app.push_screen(AskScreen("Save it?", "as what", value="mine"), answers.append)
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        await pilot.press("escape")
        await until(pilot, lambda: answers)
    assert answers == [None]
