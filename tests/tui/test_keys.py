"""Keys of a person's own, colours that are remembered, and what is reachable by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from textual.widgets import Input

from engine.errors import SettingsError
from engine.paths import config_root
from gptoss_tui import keys, theme
from gptoss_tui.app import CockpitApp
from gptoss_tui.screens.help import HelpScreen
from gptoss_tui.screens.home import HomeScreen
from gptoss_tui.screens.runs import RunsScreen
from gptoss_tui.screens.setup import SetupScreen
from tests.tui.doubles import until

ROOT = Path(__file__).parents[2]


def written(text: str) -> Path:
    file = config_root() / "keys.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_every_action_of_a_screen_has_a_name():
    unnamed = [
        f"{path.name}: {line.strip()}"
        for path in (ROOT / "gptoss_tui").rglob("*.py")
        for line in re.findall(r"Binding\((?:[^()]|\([^()]*\))*\)", path.read_text())
        if "id=" not in line
    ]
    assert not unnamed


def test_the_page_lists_every_action():
    page = (ROOT / "docs" / "wizard.md").read_text()  # made by: python -m gptoss_tui.keys
    assert keys.table() in page


def test_no_key_is_one_that_docker_takes():
    assert not {"ctrl+p", "ctrl+q"} & {key for action in keys.actions().values() for key in action.keys}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"home.new" = "w"', {"home.new": "w"}),
        ('[home]\nnew = ["w", "ctrl+n"]', {"home.new": "w,ctrl+n"}),
        ('home.new = "f6,?"\napp.help = "f1"', {"home.new": "f6,question_mark", "app.help": "f1"}),
        ('home.new = "r"\nhome.runs = "n"', {"home.new": "r", "home.runs": "n"}),
        ("", {}),
    ],
)
def test_keys_are_read(text, expected):
    assert keys.read(written(text)) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('home.nwe = "w"', "there is no action 'home.nwe'"),
        ('home.new = "r"', "'r' would be both home.new (New set-up) and home.runs (Runs)"),
        ('list.down = "q"', "'q' would be both list.down (Down) and screen.leave"),
        ('home.new = "ctrl+p"', "docker detaches"),
        ('home.new = "hypr+x"', "is no key"),
        ('home.new = "nokey"', "is no key"),
        ("home.new = 5", "is no key"),
        ("home.new = []", "is no key"),
        ("home.new = ", "is not TOML"),
        ("# " + "x" * 200_000, "is larger than"),
    ],
)
def test_what_cannot_work_is_refused_in_words(text, told):
    with pytest.raises(SettingsError) as refused:
        keys.read(written(text))
    assert told in refused.value.message
    assert refused.value.hint


def test_a_directory_in_place_of_the_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        keys.read(tmp_path)


async def test_own_keys_work_and_replace_the_usual_ones(make_app):
    written('home.runs = "w"')
    app = make_app(HomeScreen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.focused is not None)
        await pilot.press("r")
        assert isinstance(app.screen, HomeScreen)
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


async def test_an_own_key_does_not_act_while_somebody_types(make_app, services):
    written('setup.review = "w"')
    app = make_app(lambda: SetupScreen(preset=services.presets()[0]))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.machine is not None)
        await pilot.press("enter", "down")
        await until(pilot, lambda: isinstance(app.focused, Input))
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.focused, Input) and app.focused.value == "w")
        await pilot.press("escape", "w")
        await until(pilot, lambda: app.screen._station == "review")


async def test_a_bad_file_leaves_the_usual_keys(make_app):
    written('home.runs = "n"')
    app = make_app(HomeScreen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app._notifications)
        (told,) = [note.message for note in app._notifications]
        assert "would be both home.runs (Runs) and home.new (New set-up)" in told
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


async def test_the_palette_lists_every_action_by_name_where_it_does_something(make_app, services):
    app = make_app(lambda: SetupScreen(preset=services.presets()[0]))
    async with app.run_test(size=(120, 36)) as pilot:
        listed = set()

        def look() -> set[str]:
            found = {command.title for command in app.get_system_commands(app.screen)}
            listed.update(found)
            return found

        await until(pilot, lambda: {"Next station", "Advanced", "Review"} <= look())
        app.screen.draft.set("training.iterations", "7")
        app.screen._after_edit()
        await until(pilot, lambda: "Undo" in look())
        await pilot.press("u")
        await until(pilot, lambda: "Redo" in look())
        await pilot.press("f8")
        await until(pilot, lambda: app.focused is not None and app.focused.id == "launch")
        look()
        scopes = {"review", "setup", "screen", "app"}
        wanted = {action.meaning for action in keys.actions().values() if action.scope in scopes}
        # q and Escape say here what they do here: Leave. Other layouts are offered where there are some.
        assert wanted - listed <= {"Quit", "Back", "Other layouts"}


async def test_colours_are_remembered(make_app):
    app = make_app(HomeScreen)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        app.theme = "cockpit-colour-blind"
        await until(pilot, lambda: theme.kept() == "cockpit-colour-blind")
    assert make_app(HomeScreen).theme == "cockpit-colour-blind"
    theme.keep("no-such-theme")
    assert make_app(HomeScreen).theme == theme.DEFAULT


@pytest.mark.parametrize("name", [one.name for one in theme.THEMES])
async def test_every_theme_shows_every_style(make_app, name):
    app: CockpitApp = make_app(HomeScreen)
    async with app.run_test(size=(80, 24)) as pilot:
        app.theme = name
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        assert set(app.palette) >= {"good", "bad", "warning", "muted", "selected"}
        if name != theme.MONOCHROME:
            good, bad = app.palette["good"].color, app.palette["bad"].color
            assert good != bad
        else:
            assert all(style.color is None for style in app.palette.values())


@pytest.mark.parametrize("size", [(60, 20), (69, 40), (120, 21)])
async def test_a_small_terminal_says_what_it_needs(make_app, size):
    app = make_app(HomeScreen)
    async with app.run_test(size=size) as pilot:
        small = app.screen.query_one("#too-small")
        await until(pilot, lambda: small.display and f"has {size[0]} and {size[1]}" in str(small.render()))
        assert not app.screen.query_one("#home").display
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.screen.query_one("#home").display and not small.display)
