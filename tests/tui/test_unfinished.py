"""A set-up that was not finished, and another one that is begun: nothing is replaced unasked."""

from __future__ import annotations

import pytest
from textual.widgets._toast import Toast

from engine import presets
from engine.settings import Settings
from gptoss_tui import unfinished
from gptoss_tui.app import CockpitApp
from gptoss_tui.bridge import Services
from gptoss_tui.draft import Draft
from gptoss_tui.screens.confirm import ConfirmScreen
from gptoss_tui.screens.home import HomeScreen
from gptoss_tui.screens.setup import SetupScreen
from tests.limits import LIMIT_S
from tests.tui.doubles import until
from tests.tui.test_home import ready


@pytest.fixture
def kept() -> Draft:
    draft = Draft(name="rehearsal")
    draft.set("training.iterations", "77")
    draft.set("training.global_batch", "lots")
    draft.save()
    return draft


def iterations(app) -> str:
    return app.screen.draft.text("training.iterations") if isinstance(app.screen, SetupScreen) else ""


async def begin(pilot, app) -> None:
    """Begin another set-up from the first preset, and be asked."""
    await ready(pilot, app)
    await pilot.press("n")
    await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
    told = str(app.screen.query_one("#text").render())
    assert "training.iterations = 77" in told and "'lots'" in told


@pytest.mark.usefixtures("kept")
async def test_going_on_is_what_enter_does(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: iterations(app) == "77")
        assert "training.global_batch" in app.screen.draft.problems


@pytest.mark.usefixtures("kept")
async def test_starting_anew_replaces_it_with_the_first_change_and_not_before(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot, app)
        await pilot.press("right", "right", "enter")
        await until(pilot, lambda: iterations(app) == "60")
        again = Draft.load()
        assert again is not None and again.text("training.iterations") == "77"
        app.screen.draft.set("training.iterations", "61")
        app.screen._after_edit()
        again = Draft.load()
        assert again is not None and again.text("training.iterations") == "61"


@pytest.mark.usefixtures("kept")
async def test_keeping_both_makes_the_old_one_a_preset(make_app, services):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot, app)
        await pilot.press("right", "enter")
        await until(pilot, lambda: iterations(app) == "60")
        assert services.saved == ["rehearsal-unfinished"]


@pytest.mark.usefixtures("kept")
async def test_escape_goes_back_and_changes_nothing(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await begin(pilot, app)
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, HomeScreen))
        again = Draft.load()
        assert again is not None and again.text("training.iterations") == "77"


@pytest.mark.usefixtures("kept")
async def test_a_set_up_without_a_start_of_its_own_goes_on(make_app):
    app = make_app(SetupScreen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: iterations(app) == "77")
        assert app.screen.draft.name == "rehearsal"


async def test_the_same_settings_or_an_untouched_draft_ask_nothing(make_app, services):
    start = services.presets()[0]
    Draft(start.settings, start.name).save()
    assert unfinished.beside(Draft()) is None
    changed = Draft(start.settings, start.name)
    changed.set("training.iterations", "61")
    changed.save()
    assert unfinished.beside(Draft(changed.settings, "a file")) is None
    assert unfinished.beside(Draft()) is not None


def test_what_is_kept_takes_a_name_that_is_free(kept):
    kept.name = "odd name/of a file"
    names = [unfinished.keep(kept, Services()).stem for _ in range(2)]
    assert names == ["odd-name-of-a-file-unfinished", "odd-name-of-a-file-unfinished-2"]
    assert presets.find(names[0]).settings == Settings().with_values({"training.iterations": 77})


@pytest.mark.usefixtures("kept")
async def test_that_it_goes_on_is_told_where_it_hides_no_consequence(make_app, monkeypatch):
    monkeypatch.setattr(CockpitApp, "NOTIFICATION_TIMEOUT", LIMIT_S)
    app = make_app(SetupScreen)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: any(toast.region for toast in app.screen.query(Toast)))
        await until(pilot, lambda: app.screen.query_one("#consequence").region)
        [toast] = app.screen.query(Toast)
        assert not toast.region.overlaps(app.screen.query_one("#consequence").region)
