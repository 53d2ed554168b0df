"""User stories of the list of runs: mark, overlay, tag, put away."""

from __future__ import annotations

import pytest

from engine.monitor import labels
from gptoss_tui.screens.asking import AskScreen
from gptoss_tui.screens.compare import CompareScreen
from gptoss_tui.screens.runs import RunsScreen
from gptoss_tui.widgets.chart import Chart
from gptoss_tui.widgets.choices import Choices
from tests.tui.doubles import FakeRun, until


@pytest.fixture
def two_runs(runs_root):
    first, second = FakeRun(runs_root, "first"), FakeRun(runs_root, "second", iterations=400)
    first.metrics(1, 100)
    second.metrics(1, 60)
    return first, second


async def listed(pilot) -> Choices:
    choices = pilot.app.screen.query_one(Choices)
    await until(pilot, lambda: len(choices.items) == 2)
    return choices


async def test_marked_runs_share_a_chart(make_app, two_runs):
    app = make_app(RunsScreen)
    async with app.run_test(size=(120, 36)) as pilot:
        await listed(pilot)
        await pilot.press("space", "space")
        assert "2 marked" in app.screen.title_bar.text
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, CompareScreen) and "●" in app.screen.query_one(Chart).text)
        chart = app.screen.query_one(Chart)
        assert "loss by iteration" in chart.text and "● first" in chart.text and "● second" in chart.text
        differing = app.screen.query_one("#differences").text
        assert "training.iterations" in differing and "200" in differing and "400" in differing
        await pilot.press("x")
        assert "loss by tokens" in chart.text
        training = chart.picture.series.last_iteration
        assert training in (100 * tokens(two_runs), 60 * tokens(two_runs))
        await pilot.press("x")
        assert "loss by time" in chart.text and "25 s" in chart.text
        await pilot.press("c")
        assert "throughput by time" in chart.text
        await pilot.press("end")
        # Only the longer run has a value at the end.
        assert chart.text.splitlines()[0].count("–") == 1
        await pilot.press("escape", "q")
        await until(pilot, lambda: isinstance(app.screen, RunsScreen))


def tokens(runs) -> int:
    from engine import settings_file

    training = settings_file.load(runs[0].run.settings).training
    return training.global_batch * training.sequence_length


async def test_tags_and_notes_are_kept_and_found(make_app, two_runs):
    app = make_app(RunsScreen)
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        choices = await listed(pilot)
        name = choices.highlighted
        run = next(one.run for one in two_runs if one.run.name == name)
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        await pilot.press(*"keep b200", "enter")
        await until(pilot, lambda: "#b200 #keep" in choices.text)
        await pilot.press("n")
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        await pilot.press(*"lr holds", "enter")
        await until(pilot, lambda: labels.read(run.path).note == "lr holds")
        await until(pilot, lambda: "lr holds" in app.screen.query_one("#about").text)
        await pilot.press("slash", *"#keep")
        await until(pilot, lambda: len(choices.items) == 1)
        await pilot.press("escape")
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, AskScreen) and app.focused)
        await pilot.press("ctrl+u", *"NOT!", "enter")
        await until(pilot, lambda: any("is no tag" in note.message for note in app._notifications))
        assert labels.read(run.path).tags == ("b200", "keep")


async def test_what_was_put_away_is_shown_when_asked_for(make_app, two_runs):
    app = make_app(RunsScreen)
    async with app.run_test(size=(80, 24)) as pilot:
        choices = await listed(pilot)
        gone = choices.highlighted
        await pilot.press("a")
        await until(pilot, lambda: len(choices.items) == 1)
        assert choices.highlighted != gone
        await pilot.press("A")
        await until(pilot, lambda: len(choices.items) == 2)
