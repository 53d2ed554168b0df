"""User stories of the set-up: answer, go back, be wrong, be shown the consequence, launch."""

from __future__ import annotations

import pytest
from textual import events
from textual.widgets import Input

from engine.findings import error, warning
from engine.settings import OPTIONS, Settings
from gptoss_tui.draft import Draft
from gptoss_tui.screens.asking import AskScreen
from gptoss_tui.screens.confirm import ConfirmScreen
from gptoss_tui.screens.help import HelpScreen, keys_of
from gptoss_tui.screens.monitor import MonitorScreen
from gptoss_tui.screens.setup import SetupScreen
from gptoss_tui.stations import STATIONS
from gptoss_tui.widgets.alternatives import Alternatives
from gptoss_tui.widgets.canvas import width_of
from gptoss_tui.widgets.consequence import Consequence, _speed_rows
from gptoss_tui.widgets.field import Field, field_of
from gptoss_tui.widgets.form import Form
from gptoss_tui.widgets.key_hints import KeyHints
from tests.tui.doubles import until


@pytest.fixture
def make_setup(make_app, services):
    return lambda: make_app(lambda: SetupScreen(preset=services.presets()[0]))


def consequence(app) -> str:
    return app.screen.query_one(Consequence).text


def focused_key(app) -> str:
    field = field_of(app.focused)
    return field.option.key if field else ""


async def open_station(pilot, app, key: str) -> None:
    """Walk to a station from the rail, as arrows do, and into its form."""
    places = [station.key for station in STATIONS]
    for _ in range(places.index(key) - places.index(app.screen._station)):
        await pilot.press("down")
    await pilot.press("enter")
    await until(pilot, lambda: app.focused is not None and app.focused.id != "rail")


async def focus_option(pilot, app, key: str) -> None:
    station = next(station for station in STATIONS if OPTIONS[key].table in station.tables)
    await open_station(pilot, app, station.key)
    app.screen.query_one(f"#form-{station.key}", Form).focus_option(key)
    await until(pilot, lambda: focused_key(app) == key)


async def test_a_beginner_walks_through_all_of_it_with_arrows_and_enter(make_setup, services):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "can run" in consequence(app))
        await pilot.press("enter")
        for station in STATIONS[:-1]:
            form_id = f"#form-{station.key}"
            await until(pilot, lambda form_id=form_id: app.screen.query(f"{form_id} Button"))
            await until(
                pilot,
                lambda form_id=form_id: app.focused and app.screen.query_one(form_id) in app.focused.ancestors,
            )
            while app.focused is not app.screen.query_one(form_id).query_one("Button"):
                await pilot.press("enter")
                await pilot.pause()
            await pilot.press("enter")
        await until(pilot, lambda: app.focused is not None and app.focused.id == "launch")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen))
        ((settings, _),) = services.started
        assert settings == services.presets()[0].settings


async def test_an_expert_changes_two_values_and_launches(make_setup, services):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "can run" in consequence(app))
        await focus_option(pilot, app, "training.iterations")
        await pilot.press(*"123", "tab", "tab", "tab", *"32", "f8")
        await until(pilot, lambda: app.focused is not None and app.focused.id == "launch")
        await until(pilot, lambda: "60 → 123" in app.screen.query_one("#review-text").text)
        app.screen.query_one("#name", Input).value = "mine"
        await until(pilot, lambda: not app.screen.query_one(Consequence)._is_stale)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press("enter")
        await until(pilot, lambda: services.started)
        ((settings, name),) = services.started
        assert (settings.training.iterations, settings.training.global_batch, name) == (123, 32, "mine")
        assert Draft.load() is None


async def test_a_mistake_is_told_beside_its_field_and_nothing_typed_is_lost(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "training.global_batch")
        await pilot.press(*"lots")
        field = field_of(app.focused)
        await until(pilot, lambda: field.problem is not None)
        assert "'lots' is not allowed" in field.text
        await pilot.press("escape")
        await until(pilot, lambda: "✗ Training" in app.screen.query_one("#rail").text)
        for _ in range(3):
            await pilot.press("up")
        for _ in range(3):
            await pilot.press("down")
        assert app.screen.draft.text("training.global_batch") == "lots"
        assert field.control.value == "lots"
    again = Draft.load()
    assert again is not None and again.text("training.global_batch") == "lots"


async def test_a_plan_that_is_refused_says_why_and_marks_the_station(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "layout.tp")
        await pilot.press("3")
        await until(pilot, lambda: "does not divide" in consequence(app))
        assert "use 1, 2, 4 or 8" in consequence(app)
        assert "✗ Layout" in app.screen.query_one("#rail").text
        await pilot.press("backspace", "2")
        await until(pilot, lambda: "can run" in consequence(app))


async def test_what_is_missing_needs_you(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "data.source")
        alternatives = app.focused
        assert isinstance(alternatives, Alternatives)
        for _ in range(len(OPTIONS["data.source"].choices)):
            if alternatives.value == "text":
                break
            await pilot.press("right")
        await until(pilot, lambda: "! Data" in app.screen.query_one("#rail").text)
        await until(pilot, lambda: "give a text file" in consequence(app))
        await pilot.press("f8")
        await until(pilot, lambda: app.focused is not None and app.focused.id == "launch")
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, SetupScreen)


async def test_undo_and_redo_go_to_the_field(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "training.iterations")
        await pilot.press(*"99")
        field = field_of(app.focused)
        await pilot.press("pagedown", "pagedown")
        await until(pilot, lambda: app.screen.query("#form-launch Field"))
        app.screen._form("launch").focus_option("output.directory")
        await until(pilot, lambda: focused_key(app) == "output.directory")
        await pilot.press("ctrl+z")
        await until(pilot, lambda: focused_key(app) == "training.iterations")
        assert field.control.value == "60"
        await pilot.press("ctrl+y")
        await until(pilot, lambda: field.control.value == "99")
        assert app.screen.draft.settings.training.iterations == 99


async def test_only_what_does_something_here_is_offered(make_setup):
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: "can run" in consequence(app))
        hints = app.screen.query_one(KeyHints)

        def offered() -> dict[str, bool]:
            named = {"Station before", "Next station", "Advanced", "Undo", "Redo", "Review"}
            commands = {command.title for command in app.get_system_commands(app.screen)}
            told = {meaning for _, meaning in keys_of(app.screen)}
            assert commands & named == told & named
            return {name: name in commands for name in named}

        first = offered()
        assert not (first["Station before"] or first["Undo"] or first["Redo"])
        assert first["Next station"] and first["Advanced"] and first["Review"]
        assert "Undo" not in hints.text
        await focus_option(pilot, app, "training.iterations")
        await pilot.press("7")
        await until(pilot, lambda: "Undo" in hints.text)
        await pilot.press("f8")
        await until(pilot, lambda: app.focused is not None and app.focused.id == "launch")
        await until(pilot, lambda: "Advanced" not in hints.text)
        last = offered()
        assert last["Station before"] and last["Undo"]
        assert not (last["Next station"] or last["Advanced"] or last["Review"] or last["Redo"])
        await pilot.press("u")
        await until(pilot, lambda: offered()["Redo"] and not offered()["Undo"])
        # One that takes back twice in a row is still where letters are keys.
        assert app.focused.id == "rail"


async def test_what_the_checks_find_is_told_at_its_station_and_in_the_review(make_setup, services):
    services.findings = (
        error("disk.full", "the run writes 900 GiB and 20 are free", "", "set output.directory to a larger disk"),
        warning("memory.busy", "other programs hold 20 GiB"),
    )
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "✗ Launch" in app.screen.query_one("#rail").text)
        assert "! Machine" in app.screen.query_one("#rail").text
        assert "! other programs hold 20 GiB" in consequence(app)
        await open_station(pilot, app, "launch")
        lines = consequence(app).splitlines()
        assert "✗ the run writes 900 GiB" in lines[2] and "→ set output.directory" in lines[3]
        await pilot.press("f8")
        await until(pilot, lambda: "✗ the run writes 900 GiB" in app.screen.query_one("#review-text").text)
        assert "✗ Review" in app.screen.query_one("#rail").text
        services.findings = ()
        await pilot.press("escape", "home")
        await until(pilot, lambda: app.screen._station == "machine")
        await focus_option(pilot, app, "machine.nodes")
        await pilot.press("end", "space")  # the value is the same, and planned anew
        await until(pilot, lambda: "✓ Launch" in app.screen.query_one("#rail").text)


@pytest.mark.parametrize("width", [30, 40, 60])
def test_the_speed_is_told_whole_in_any_width(width):
    speed = {"iteration_s": 6.92, "tokens_per_s": 75_800.0}
    rows = _speed_rows(speed, Settings(), width)
    assert all(width_of(row) <= width for row in rows)
    told = " ".join("".join(text for text, _ in row) for row in rows).split()
    assert " ".join(told).count("75.8k tokens/s, 6.92 s an iteration") == 1


async def test_letters_that_come_with_an_arrow_go_to_the_next_field(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "training.goal")
        for key in ("down", "4", "2"):
            app.simulate_key(key)  # all before the first of them is worked on
        await until(pilot, lambda: app.screen.draft.settings.training.iterations == 42)


async def test_help_explains_the_field_that_has_the_focus(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "training.learning_rate")
        assert OPTIONS["training.learning_rate"].help in app.screen.query_one("#about").text
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen) and app.screen.query("#text"))
        text = str(app.screen.query_one("#text").render())
        option = OPTIONS["training.learning_rate"]
        for part in (option.key, option.help, option.why, option.native, "0 to 1"):
            assert part in text


async def test_advanced_fields_come_and_go_and_keep_their_values(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await open_station(pilot, app, "training")
        form = app.screen.query_one("#form-training", Form)
        basic = len(form.fields)
        await pilot.press("f3")
        await until(pilot, lambda: len(form.fields) > basic)
        form.focus_option("training.seed")
        await until(pilot, lambda: focused_key(app) == "training.seed")
        await pilot.press("end", "5")
        await pilot.press("f3")
        await until(pilot, lambda: len(form.fields) == basic)
        assert app.screen.draft.settings.training.seed == 12345


async def test_settings_are_saved_as_a_preset(make_setup, services):
    app = make_setup()
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("f8")
        await until(pilot, lambda: app.focused is not None and app.focused.id == "launch")
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        await pilot.press(*"mine", "enter")
        await until(pilot, lambda: services.saved == ["mine"])


async def test_the_review_shows_the_file_with_what_was_changed(make_setup):
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: "can run" in consequence(app))
        app.screen.draft.set("training.seed", "99")
        await pilot.press("f8")
        await until(pilot, lambda: "gptoss.toml" in app.screen.query_one("#review-text").text)
        text = app.screen.query_one("#review-text").text
        assert "▸ seed = 99" in text
        assert "  iterations = 60" in text
        assert "GPUS_PER_NODE=2" in text


async def test_a_paste_of_ten_megabytes_changes_nothing(make_setup):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, "training.iterations")
        app.focused.post_message(events.Paste("9" * 10_000_000))
        await pilot.press("end", "1")
        await until(pilot, lambda: app.screen.draft.settings.training.iterations == 601)


@pytest.mark.parametrize("key", ["data.path", "output.directory", "model.path"])
async def test_odd_paths_are_kept_as_they_are(make_setup, key):
    app = make_setup()
    async with app.run_test(size=(80, 24)) as pilot:
        await focus_option(pilot, app, key)
        app.focused.insert_text_at_cursor("/a b/'c\"/日本")
        await until(pilot, lambda: app.screen.draft.settings.value(key) == "/a b/'c\"/日本")


async def test_every_station_shows_all_its_options(make_setup):
    app = make_setup()
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.press("f3")
        for station in STATIONS[:-1]:
            await until(pilot, lambda key=station.key: app.screen.query(f"#form-{key} Field"))
            shown = [field.option for field in app.screen.query_one(f"#form-{station.key}").query(Field)]
            assert tuple(shown) == station.options
            await pilot.press("down")
