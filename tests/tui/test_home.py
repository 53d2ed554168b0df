"""User stories that begin at home: start a preset, look at a run, see what is wrong."""

from __future__ import annotations

from dataclasses import replace
from threading import Event

import pytest

from engine.errors import LaunchError
from engine.findings import error, warning
from engine.run.state import Status
from gptoss_tui.draft import Draft
from gptoss_tui.screens.confirm import ConfirmScreen
from gptoss_tui.screens.home import HomeScreen
from gptoss_tui.screens.monitor import MonitorScreen
from gptoss_tui.screens.runs import RunsScreen
from gptoss_tui.screens.setup import SetupScreen
from gptoss_tui.widgets.choices import Choices
from tests.limits import LIMIT_S
from tests.tui.doubles import FakeRun, FakeServices, a_full_run, until


async def ready(pilot, app) -> None:
    """Presets, runs and machine are on the screen."""
    await until(pilot, lambda: app.machine is not None and app.screen.query_one("#presets", Choices).items)
    await until(pilot, lambda: "8 cores" in app.screen.title_bar.text)


async def test_the_first_frame_waits_for_nothing_slow(make_app, services):
    services.machine = None  # would fail if it were called before the screen is there
    services.presets = None
    async with make_app().run_test(size=(80, 24)) as pilot:
        assert pilot.app.screen.query_one("#presets", Choices).has_focus


@pytest.mark.parametrize("screen", [HomeScreen, RunsScreen])
async def test_a_slow_disk_is_asked_once_and_its_answer_is_shown(make_app, services, runs_root, monkeypatch, screen):
    a_full_run(runs_root)
    monkeypatch.setattr("gptoss_tui.screens.home.RUNS_S", 0.05)
    monkeypatch.setattr("gptoss_tui.screens.runs.LOOK_S", 0.05)
    answers, asked = Event(), []

    def root():
        asked.append(1)
        assert answers.wait(LIMIT_S)
        return runs_root

    services.runs_root = root
    app = make_app(screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: asked)
        await pilot.pause(0.5)  # ten times as long as until the next look
        answers.set()
        assert len(asked) == 1
        await until(pilot, lambda: "night" in app.screen.query_one("#runs", Choices).text)


async def test_a_beginner_starts_the_rehearsal_with_enter_alone(make_app, services):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen))
        ((settings, name),) = services.started
        assert settings.model.name == "tiny"
        assert name == ""


async def test_nothing_starts_without_a_yes(make_app, services):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press("escape")
        await pilot.pause()
        assert services.started == []


async def test_a_preset_can_be_changed_before_it_starts(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press("right", "enter")
        await until(pilot, lambda: isinstance(app.screen, SetupScreen))
        assert app.screen.draft.settings.training.iterations == 5000


async def test_a_check_that_forbids_the_start_offers_none(make_app, services):
    services.findings = (error("disk.full", "the run needs 9 GiB and 1 GiB is free", fix="free some"),)
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        assert not app.screen.query("#choice-start")
        assert "9 GiB" in str(app.screen.query_one("#text").render())


async def test_of_a_machine_that_is_described_no_start_is_offered(make_app, services, tmp_path):
    services.described = tmp_path / "machine.toml"
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        assert not app.screen.query("#choice-start")
        assert "Export scripts" in str(app.screen.query_one("#text").render())
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, SetupScreen))


async def test_a_warning_lets_one_start_and_a_doubtful_error_asks_twice(make_app, services):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        for finding, focused in (
            (warning("a.b", "may be slow"), "choice-start"),
            (error("a.b", "may be wrong", ignorable=True), "choice-no"),
        ):
            services.findings = (finding,)
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused is not None)
            assert app.focused is not None and app.focused.id == focused
            assert app.screen.query("#choice-start")
            await pilot.press("escape")


async def test_a_start_that_fails_says_why_and_what_to_try(make_app, services):
    services.failure = LaunchError("the supervisor did not start", "look at: gptoss doctor")
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and not app.screen.query("#choice-start"))
        assert "gptoss doctor" in str(app.screen.query_one("#text").render())


async def test_arrows_go_from_the_presets_to_the_runs_and_enter_opens_one(make_app, runs_root):
    a_full_run(runs_root)
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await until(pilot, lambda: app.screen.query_one("#runs", Choices).items)
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen))
        assert app.screen.run.name == "night"


async def test_a_run_that_ends_is_seen_without_a_key(make_app, runs_root):
    fake = a_full_run(runs_root)
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "running" in app.screen.query_one("#runs", Choices).text)
        fake.put(status=Status.FINISHED)
        app.screen._look_at_runs()
        await until(pilot, lambda: "finished" in app.screen.query_one("#runs", Choices).text)


async def test_an_unfinished_draft_is_offered_again(make_app):
    draft = Draft(name="rehearsal")
    draft.set("training.iterations", "77")
    draft.save()
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, SetupScreen))
        await until(pilot, lambda: app.screen.draft.text("training.iterations") == "77")


async def test_runs_are_filtered_by_what_is_typed(make_app, runs_root):
    for name in ("alpha", "beta", "alphabet"):
        FakeRun(runs_root, name)
    app = make_app(RunsScreen)
    async with app.run_test(size=(80, 24)) as pilot:
        choices = app.screen.query_one(Choices)
        await until(pilot, lambda: len(choices.items) == 3)
        await pilot.press("slash", *"alpha")
        await until(pilot, lambda: {item.key for item in choices.items} == {"alpha", "alphabet"})
        await pilot.press("escape")
        await until(pilot, lambda: len(choices.items) == 3)


async def test_the_doctor_tells_what_it_found(make_app):
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("d")
        await until(pilot, lambda: "no NVIDIA GPU" in app.screen.query_one("#findings").text)
        assert "A processor" in app.screen.query_one("#machine").text


async def test_a_list_that_does_not_fit_says_so(make_app, services):
    [first, *_] = FakeServices.presets(services)
    services.presets = lambda: tuple(replace(first, name=f"preset-{number:02d}") for number in range(14))
    app = make_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot, app)
        title, choices = app.screen.query_one("#presets-title"), app.screen.query_one("#presets", Choices)
        await until(pilot, lambda: f"↓ {14 - choices.content_size.height} more" in title.text)
        await pilot.press("end")
        await until(pilot, lambda: f"↑ {14 - choices.content_size.height} more" in title.text)
        assert "↓" not in title.text
