"""Pictures of the set-up's stations and dialogs. Look at the report of a failure before `--snapshot-update`."""

from __future__ import annotations

import pytest

from gptoss_tui import theme
from gptoss_tui.screens.asking import AskScreen
from gptoss_tui.screens.presets import PresetsScreen
from gptoss_tui.screens.setup import SetupScreen
from gptoss_tui.widgets.length_field import LengthField
from gptoss_tui.widgets.station_panel import StationPanel
from tests.tui.doubles import dgx, until
from tests.tui.test_setup import open_station
from tests.tui.test_snapshots import SIZES, planned, snap

__all__ = ["snap"]  # a fixture


@pytest.fixture
def make_setup(make_app, services):
    services._machine = dgx()
    return lambda: make_app(lambda: SetupScreen(preset=services.presets()[1]))


async def at(pilot, station: str) -> None:
    """Wait until the station tells all it has to tell."""
    await planned(pilot)
    await open_station(pilot, pilot.app, station)
    form = pilot.app.screen._form(station)
    await until(pilot, lambda: form._has_fields)
    await until(pilot, lambda: all(panel._facts is not None for panel in form.query(StationPanel)))
    await until(pilot, lambda: all(field._data_tokens is not None for field in form.query(LengthField)))
    await planned(pilot)


@SIZES
@pytest.mark.parametrize("station", ["model", "data", "training"])
def test_station(snap, make_setup, station, size):
    async def act(pilot):
        await at(pilot, station)

    assert snap(make_setup(), size, act)


@pytest.mark.parametrize("name", ["cockpit-light", "cockpit-colour-blind", theme.MONOCHROME])
def test_theme(snap, make_setup, name):
    async def act(pilot):
        await planned(pilot)
        pilot.app.theme = name
        pilot.app.screen.draft.set("training.iterations", "many")
        pilot.app.screen._after_edit()
        await at(pilot, "training")

    assert snap(make_setup(), (80, 24), act)


def test_presets(snap, make_setup):
    async def act(pilot):
        await planned(pilot)
        pilot.app.push_screen(PresetsScreen(pilot.app.screen.draft.settings))
        await until(pilot, lambda: isinstance(pilot.app.screen, PresetsScreen) and pilot.app.screen._presets)
        await until(pilot, lambda: "nothing" in pilot.app.screen.query_one("#changes").text or pilot.app.focused)
        await pilot.press("home", "down")  # what suits the machine comes first
        # The last line names a file of the program.
        screen = pilot.app.screen
        await until(pilot, lambda: "tiny" in screen.query_one("#changes").text)

    assert snap(make_setup(), (80, 24), act)


def test_question(snap, make_setup):
    async def act(pilot):
        await planned(pilot)
        pilot.app.push_screen(AskScreen("Hugging Face token", "It is never written anywhere.", is_secret=True))
        await until(pilot, lambda: isinstance(pilot.app.screen, AskScreen) and pilot.app.focused)
        await pilot.press(*"hidden")

    assert snap(make_setup(), (80, 24), act)
