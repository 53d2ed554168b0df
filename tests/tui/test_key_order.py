"""Keys that come together do what they do one by one."""

from __future__ import annotations

import asyncio

import pytest
from textual import events

from engine.settings import OPTIONS
from gptoss_tui import key_order
from gptoss_tui.draft import Draft
from gptoss_tui.screens.help import HelpScreen
from gptoss_tui.screens.home import HomeScreen
from gptoss_tui.screens.monitor import MonitorScreen
from gptoss_tui.screens.setup import SetupScreen
from tests.tui.doubles import a_full_run, settled, until
from tests.tui.test_setup import consequence, focus_option

LIMIT_S = 60.0


def type_together(app, *keys: str) -> None:
    """All of them before the program does anything about the first."""
    for key in keys:
        app.post_message(events.Key(key, key if len(key) == 1 else None))


def told(app) -> list[str]:
    """What stands in every field."""
    return [app.screen.draft.text(key) for key in OPTIONS]


@pytest.fixture
def setup(make_app, services):
    return make_app(lambda: SetupScreen(preset=services.presets()[0]))


async def test_letters_right_behind_enter_go_to_the_field_that_it_opens(setup):
    app = setup
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "can run" in consequence(app), LIMIT_S)
        type_together(app, "down", "down", "down", "enter", "down", "end", "7", "7")
        await until(pilot, lambda: app.screen.draft.text("training.iterations") == "6077", LIMIT_S)


async def test_keys_that_come_together_do_what_they_do_one_by_one(make_app, services):
    keys = ["7", "enter", "enter", "3", "backspace", "5", "shift+tab", "end", "1", "f3", "down", "9"]
    texts = []
    for is_together in (False, True):
        Draft.forget()
        app = make_app(lambda: SetupScreen(services.presets()[0].settings))
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda app=app: "can run" in consequence(app), LIMIT_S)
            await focus_option(pilot, app, "training.global_batch")
            if is_together:
                type_together(app, *keys)
                # Until the last of them has been dealt with.
                await until(pilot, lambda app=app: told(app) == texts[0], LIMIT_S)
            else:
                for key in keys:
                    await pilot.press(key)
                    await settled(pilot)
                texts.append(told(app))


async def test_what_is_pasted_right_behind_enter_goes_there_too(setup):
    app = setup
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "can run" in consequence(app), LIMIT_S)
        type_together(app, "down", "down", "down", "enter", "down", "end")
        app.post_message(events.Paste("88"))
        await until(pilot, lambda: app.screen.draft.text("training.iterations") == "6088", LIMIT_S)


async def test_a_key_for_help_and_two_to_leave(make_app, runs_root):
    app = make_app(lambda: MonitorScreen(a_full_run(runs_root).run))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.screen.focused is not None, LIMIT_S)
        type_together(app, "question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), LIMIT_S)
        type_together(app, "q", "q")
        await until(pilot, lambda: app._exit, LIMIT_S)


async def test_a_screen_that_never_rests_gets_its_keys_all_the_same(make_app, monkeypatch):
    monkeypatch.setattr(key_order, "LIMIT_S", 0.05)
    monkeypatch.setattr(key_order.KeyOrder, "_is_at_rest", lambda *_, **__: False)
    app = make_app(HomeScreen)
    async with app.run_test(size=(100, 30)) as pilot:
        type_together(app, "question_mark", "q", "q")
        await until(pilot, lambda: app._exit, LIMIT_S)


@pytest.mark.parametrize("name", ["_is_at_rest", "_is_text"])
async def test_a_mistake_in_looking_keeps_no_key(make_app, monkeypatch, name):
    """As when another Textual lacks what is looked into."""

    def fail(*_, **__):
        raise AttributeError("_waiters")

    monkeypatch.setattr(key_order.KeyOrder, name, fail)
    app = make_app(HomeScreen)
    async with app.run_test(size=(100, 30)) as pilot:
        type_together(app, "question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), LIMIT_S)
        type_together(app, "q")
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), LIMIT_S)
        type_together(app, "q")
        await until(pilot, lambda: app._exit, LIMIT_S)


async def test_a_mistake_while_a_key_waits_hands_it_out(make_app, monkeypatch):
    rest = key_order.KeyOrder._is_at_rest
    looks = []

    def fails_later(order, **options):
        looks.append(len(order._waiting))
        if order._waiting:
            raise AttributeError("_waiters")
        return False if len(looks) == 1 else rest(order, **options)

    monkeypatch.setattr(key_order.KeyOrder, "_is_at_rest", fails_later)
    app = make_app(HomeScreen)
    async with app.run_test(size=(100, 30)) as pilot:
        type_together(app, "question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), LIMIT_S)
    assert max(looks) > 0


async def test_a_key_that_never_comes_back_is_not_waited_for(make_app, monkeypatch):
    monkeypatch.setattr(key_order, "LOST_S", 0.05)
    app = make_app(HomeScreen)
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        app._key_order._awaited = events.Key("x", "x")
        type_together(app, "question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), LIMIT_S)


async def test_a_key_that_need_not_wait_after_all_keeps_no_other(make_app, runs_root, monkeypatch):
    app = make_app(lambda: MonitorScreen(a_full_run(runs_root).run))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.screen.focused is not None, LIMIT_S)
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # as Textual does outside of tests
        at_rest = iter([False])  # busy when the key comes, and at rest when its turn is waited for
        monkeypatch.setattr(app._key_order, "_is_free", lambda **_: next(at_rest, True))
        type_together(app, "question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), LIMIT_S)
        type_together(app, "q")
        await until(pilot, lambda: not isinstance(app.screen, HelpScreen), LIMIT_S)
