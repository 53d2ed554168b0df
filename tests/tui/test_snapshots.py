"""Pictures of every screen. Look at the report of a failure before `--snapshot-update`."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

import pytest
from textual.pilot import Pilot

from engine.findings import warning
from engine.run.state import Status
from gptoss_tui.app import CockpitApp
from gptoss_tui.glyphs import Charset
from gptoss_tui.review_text import ReviewPage
from gptoss_tui.screens.confirm import ConfirmScreen
from gptoss_tui.screens.doctor import DoctorScreen
from gptoss_tui.screens.help import HelpScreen
from gptoss_tui.screens.home import HomeScreen
from gptoss_tui.screens.monitor import MonitorScreen
from gptoss_tui.screens.setup import SetupScreen
from gptoss_tui.widgets.choices import Choices
from gptoss_tui.widgets.consequence import Consequence
from gptoss_tui.widgets.form import Form
from gptoss_tui.widgets.review import Review
from tests.tui.doubles import NOW, FakeRun, a_full_run, dgx, settled, until

SIZES = pytest.mark.parametrize("size", [(80, 24), (120, 36)], ids=["80x24", "120x36"])

type Act = Callable[[Pilot[object]], Awaitable[None]]


@pytest.fixture
def snap(snap_compare):
    """Compare the picture after `act`, once it does not change any more."""

    def compare(app: CockpitApp, size: tuple[int, int], act: Act | None = None) -> bool:
        async def act_and_settle(pilot: Pilot[object]) -> None:
            if act is not None:
                await act(pilot)
            await settled(pilot)

        return snap_compare(app, terminal_size=size, run_before=act_and_settle)

    return compare


@pytest.fixture
def some_runs(runs_root):
    """One run in every state that a list shows."""
    a_full_run(runs_root)
    endings = {
        "finished": "all steps are done",
        "failed": "train failed: CUDA out of memory (lower training.micro_batch)",
        "stopped": "stopped during train; continue with: gptoss run --resume stopped",
    }
    for place, (status, message) in enumerate(endings.items(), start=1):
        fake = FakeRun(runs_root, status, step="verify" if status == "finished" else "train")
        fake.metrics(1, 40)
        # Each was made at a time of its own: that is how they are listed.
        fake.put(status=Status(status), message=message, iteration=40, created=NOW - 100 - place)
        moment = NOW - place * 50_000
        os.utime(fake.run.state, (moment, moment))


@SIZES
@pytest.mark.usefixtures("some_runs")
def test_home(snap, make_app, size):
    async def act(pilot):
        await until(pilot, lambda: len(pilot.app.screen.query_one("#runs", Choices).items) == 4)
        await until(pilot, lambda: "8 cores" in pilot.app.screen.title_bar.text)
        await pilot.press("down", "down", "down", "down")
        await until(pilot, lambda: "failed" in pilot.app.screen.query_one("#about").text)

    assert snap(make_app(HomeScreen), size, act)


def test_home_asks_before_it_starts_something(snap, make_app, services):
    services.findings = (warning("disk.low", "the disk has 20 GiB left", fix="free some"),)

    async def act(pilot):
        await until(pilot, lambda: pilot.app.machine and pilot.app.screen.query_one("#presets", Choices).items)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen) and pilot.app.focused)

    assert snap(make_app(HomeScreen), (80, 24), act)


def monitor_drawn(pilot) -> bool:
    screen = pilot.app.screen
    log, chart, facts = (screen.query_one(name).text for name in ("#log", "#chart", "#facts"))
    return "120/     200" in log and "validation 2.900" in chart and "tokens" in facts and screen.settings is not None


async def monitor_ready(pilot) -> None:
    await until(pilot, lambda: monitor_drawn(pilot))
    pilot.app.screen.draw_all()


@SIZES
def test_monitor(snap, make_app, runs_root, size):
    app = make_app(lambda: MonitorScreen(a_full_run(runs_root).run))
    assert snap(app, size, monitor_ready)


def test_monitor_with_gpus(snap, make_app, runs_root, services):
    services._machine = dgx()

    async def act(pilot):
        await monitor_ready(pilot)
        pilot.app.screen._sample_gpus()
        await until(pilot, lambda: "97 %" in pilot.app.screen.query_one("#gpus").text)

    app = make_app(lambda: MonitorScreen(a_full_run(runs_root).run))
    assert snap(app, (160, 45), act)


def test_monitor_of_a_failed_run(snap, make_app, runs_root):
    fake = a_full_run(runs_root)
    fake.state = fake.state.with_step("train", status=Status.FAILED, ended=NOW - 5, message="CUDA out of memory")
    fake.put(
        status=Status.FAILED, ended=NOW - 5, message="train failed: CUDA out of memory (lower training.micro_batch)"
    )
    app = make_app(lambda: MonitorScreen(fake.run))
    assert snap(app, (120, 36), monitor_ready)


def test_monitor_with_a_cursor(snap, make_app, runs_root):
    async def act(pilot):
        await monitor_ready(pilot)
        pilot.app.screen.query_one("#chart").focus()
        await pilot.press("end", *["left"] * 12)

    app = make_app(lambda: MonitorScreen(a_full_run(runs_root).run))
    assert snap(app, (80, 24), act)


def test_monitor_without_unicode(snap, make_app, runs_root):
    app = make_app(lambda: MonitorScreen(a_full_run(runs_root).run), charset=Charset.ASCII)
    assert snap(app, (80, 24), monitor_ready)


def test_monitor_without_colour(snap, make_app, runs_root, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(lambda: MonitorScreen(a_full_run(runs_root).run))
    assert snap(app, (80, 24), monitor_ready)


async def planned(pilot) -> None:
    await until(pilot, lambda: "reason" in pilot.app.screen.query_one(Consequence).text or _outcome(pilot))


def _outcome(pilot) -> bool:
    consequence = pilot.app.screen.query_one(Consequence)
    return consequence._outcome is not None and not consequence._is_stale


@SIZES
def test_setup_with_a_mistake(snap, make_app, services, size):
    async def act(pilot):
        screen = pilot.app.screen
        for _ in range(3):
            await pilot.press("down")
        await pilot.press("enter")
        await until(pilot, lambda: screen.query("#form-training") and pilot.app.focused.id != "rail")
        screen.query_one("#form-training", Form).focus_option("training.iterations")
        await pilot.press(*"many", "down", "down")
        await until(pilot, lambda: screen.draft.text("training.iterations") == "many")
        await until(pilot, lambda: pilot.app.focused is screen._form("training")._stops[3])
        await planned(pilot)

    app = make_app(lambda: SetupScreen(preset=services.presets()[0]))
    assert snap(app, size, act)


def test_setup_that_cannot_run(snap, make_app, services):
    async def act(pilot):
        await planned(pilot)
        pilot.app.screen.draft.set("layout.tp", "3")
        pilot.app.screen._after_edit()
        await until(pilot, lambda: "does not divide" in pilot.app.screen.query_one(Consequence).text)
        for _ in range(4):
            await pilot.press("down")
        await until(pilot, lambda: pilot.app.screen.query("#form-layout Field"))

    app = make_app(lambda: SetupScreen(preset=services.presets()[1]))
    assert snap(app, (120, 36), act)


def test_review(snap, make_app, services):
    async def act(pilot):
        pilot.app.screen.draft.set("training.iterations", "90")
        await planned(pilot)
        await pilot.press("f8")
        await until(pilot, lambda: pilot.app.screen.query(Review) and pilot.app.focused.id == "launch")
        review = pilot.app.screen.query_one(Review)
        await until(pilot, lambda: review._plan is not None)
        # The commands hold paths of this test run.
        parts = [("Changed from rehearsal", "title"), ("training.iterations  60 → 90", "accent")]
        review.show(review._plan, ReviewPage(parts=parts, files={}))
        await until(pilot, lambda: "training.iterations  60 → 90" in review.query_one("#review-text").text)

    app = make_app(lambda: SetupScreen(preset=services.presets()[0]))
    assert snap(app, (120, 36), act)


def test_doctor(snap, make_app):
    async def act(pilot):
        await until(pilot, lambda: "no NVIDIA GPU" in pilot.app.screen.query_one("#findings").text)

    assert snap(make_app(DoctorScreen), (80, 24), act)


def test_help(snap, make_app):
    async def act(pilot):
        await until(pilot, lambda: pilot.app.machine is not None)
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen) and pilot.app.screen.query("#note"))

    assert snap(make_app(HomeScreen), (80, 24), act)


def test_too_small(snap, make_app):
    assert snap(make_app(HomeScreen), (50, 14))
