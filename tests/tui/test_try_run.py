"""The panel after a fine-tuning: held-out chats and typed questions, both models' answers as they come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engine import settings_file
from engine.errors import RunError
from engine.run.asking import Wanted
from engine.run.directory import RunDirectory
from engine.run.state import Status
from gptoss_tui.history import History
from gptoss_tui.screens.monitor import MonitorScreen
from gptoss_tui.screens.try_run import TryScreen
from gptoss_tui.widgets.answers import Answers
from gptoss_tui.widgets.note import Note
from tests.tui.doubles import FakeRun, FakeServices, until


class FakeModels:
    """Stands in for the process with the models: it says what it is given, and remembers its end."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self._records = records
        self.is_ended = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._records)

    def end(self) -> None:
        self.is_ended = True


class Models(FakeServices):
    """Services whose models know one answer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.wanted: list[Wanted] = []
        self.made: list[FakeModels] = []

    def ask_models(self, run: RunDirectory, wanted: Wanted) -> FakeModels:  # type: ignore[override]
        if self.failure:
            raise self.failure
        self.wanted.append(wanted)
        question = wanted.prompts[0] if wanted.prompts else "What does the owl say?"
        expected = "" if wanted.prompts else "The owl says: hoot!"
        self.made.append(
            FakeModels(
                [
                    {"question": 0, "text": question, "expected": expected},
                    {"loading": "base", "path": "model"},
                    {"question": 0, "model": "base", "piece": "fepfep"},
                    {"question": 0, "model": "base", "answer": "fepfep\x1b[31m"},
                    {"loading": "tuned", "path": "export"},
                    {"question": 0, "model": "tuned", "piece": "The owl says: "},
                    {"question": 0, "model": "tuned", "answer": "The owl says: hoot!"},
                ]
            )
        )
        return self.made[-1]


@pytest.fixture
def models(tmp_path) -> Models:
    return Models(tmp_path)


def shown(app) -> str:
    return app.screen.query_one(Answers).text


async def test_held_out_chats_come_first_and_a_question_on_demand(make_app, models):
    run = FakeRun(models.root).run
    app = make_app(services=models)
    async with app.run_test(size=(80, 24)) as pilot:
        app.push_screen(TryScreen(run))
        await until(pilot, lambda: isinstance(app.screen, TryScreen) and "✓" in shown(app))
        assert "> What does the owl say?" in shown(app)
        assert "fepfep" in shown(app) and "\x1b" not in shown(app)
        await pilot.press("slash", *"Moo?", "enter")
        await until(pilot, lambda: "> Moo?" in shown(app) and "hoot" in shown(app))
        assert [one.prompts for one in models.wanted] == [(), ("Moo?",)]
        # There is nothing to compare a typed question's answer with.
        assert "✓" not in shown(app)
        await pilot.press("q")
        await until(pilot, lambda: not isinstance(app.screen, TryScreen))
        assert all(one.is_ended for one in models.made)


async def test_it_opens_from_the_monitor_of_a_finished_fine_tuning(make_app, models):
    fake = FakeRun(models.root)
    settings_file.save(settings_file.load(fake.run.settings).with_values({"training.goal": "lora"}), fake.run.settings)
    app = make_app(services=models)
    async with app.run_test(size=(80, 24)) as pilot:
        monitor = MonitorScreen(fake.run)
        app.push_screen(monitor)
        await until(pilot, lambda: monitor.settings is not None and monitor.state is not None)
        await pilot.press("t")
        assert app.screen is monitor  # it is still at work
        fake.put(status=Status.FINISHED)
        await until(pilot, lambda: monitor.state.status is Status.FINISHED)
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, TryScreen) and "hoot" in shown(app))


async def test_a_run_that_has_nothing_to_ask_says_so(make_app, models):
    models.failure = RunError("night has no export to ask", "wait for its end")
    app = make_app(services=models)
    async with app.run_test(size=(80, 24)) as pilot:
        app.push_screen(TryScreen(FakeRun(models.root).run))
        await until(
            pilot, lambda: isinstance(app.screen, TryScreen) and "✗" in app.screen.query_one("#said", Note).text
        )
        assert "wait for its end" in app.screen.query_one("#said", Note).text


def test_the_monitor_counts_to_what_the_prepare_step_made_of_the_epochs():
    history = History(iterations=1000)
    history.add_events([{"kind": "progress", "step": "prepare", "done": 5, "total": 10, "unit": "bytes"}])
    assert history.iterations == 1000
    history.add_events([{"kind": "progress", "step": "train", "done": 1, "total": 45, "unit": "iterations"}])
    assert history.iterations == 45
