"""User stories of the monitor: see, search, stop, kill, leave; and what a picture may cost."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from threading import Event

import pytest
from textual.drivers.headless_driver import HeadlessDriver
from textual.widgets import Input, Static

from engine import settings_file
from engine.run.directory import append_line
from engine.run.state import Status
from gptoss_tui import feed, log_file
from gptoss_tui.screens import base, job
from gptoss_tui.screens.confirm import ConfirmScreen
from gptoss_tui.screens.monitor import MonitorScreen
from gptoss_tui.widgets.chart import Chart
from gptoss_tui.widgets.log_view import LogView
from tests.limits import LIMIT_S
from tests.tui.doubles import NOW, FakeRun, a_full_run, dgx, until

BUDGET_BYTES = 4000
"""Of the dearest update at 80x24: every panel changes and the chart gets a new axis."""


@pytest.fixture
def fake(runs_root):
    return a_full_run(runs_root)


@pytest.fixture
def make_monitor(make_app, fake):
    return lambda **arguments: make_app(lambda: MonitorScreen(fake.run), **arguments)


async def drawn(pilot, app) -> None:
    """The run's state, metrics and log are on the screen."""
    await drawn_with(pilot, app, "/     200 | lm loss")


async def drawn_with(pilot, app, text: str) -> None:
    """The same with `text` in the log."""
    await until(pilot, lambda: "2.200" in app.screen.query_one("#chart").text or app.screen.history.iteration)
    await until(pilot, lambda: "training" in app.screen.query_one("#facts").text)
    await until(pilot, lambda: text in app.screen.query_one("#log").text)


class FakeTerminal(HeadlessDriver):
    """A terminal that keeps what is written to it."""

    written: list[str]

    @property
    def is_headless(self) -> bool:
        return False

    def write(self, data: str) -> None:
        self.written.append(data)


def record_writes(app) -> list[str]:
    """What the program writes to its terminal from now on."""
    app._driver.__class__ = FakeTerminal
    app._driver.written = []
    return app._driver.written


async def test_one_look_tells_how_the_run_is(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        assert "● running  1:40" in app.screen.title_bar.text
        assert "iteration 120 / 200" in app.screen.query_one("#progress").text
        # 80 iterations of 0.25 s are left.
        assert "20 s left, at 00:00" in app.screen.query_one("#progress").text
        assert "✓ prepare 15 s ── ✓ convert 15 s ── ● train 60 % ── ○ export" in app.screen.query_one("#strip").text
        assert "validation 2.900" in app.screen.query_one("#chart").text


async def test_a_new_value_is_on_the_screen_soon(make_monitor, fake):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        append_line(fake.run.metrics, {"iteration": 121, "loss": 1.2345})
        await until(pilot, lambda: "1.234" in app.screen.query_one("#chart").text)


async def test_a_resumed_run_repeats_iterations_without_a_knot(make_monitor, fake):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        fake.metrics(101, 105)
        await until(pilot, lambda: app.screen.history.iteration == 105)
        assert app.screen.history.series["loss"].last_iteration == 105


async def test_q_leaves_and_asks_nothing_of_the_run(make_monitor, services):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        await pilot.press("q")
    assert services.asked == []
    assert app.return_value == 0


@pytest.mark.parametrize(("key", "asked"), [("s", "stop night"), ("K", "kill night")])
async def test_stop_and_kill_are_confirmed_with_the_harmless_answer_first(make_monitor, services, key, asked):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        await pilot.press(key, "enter")
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen))
        assert services.asked == []
        await pilot.press(key, "right", "enter")
        await until(pilot, lambda: services.asked == [asked])


async def test_keys_follow_the_state_of_the_run(make_monitor, fake, services):
    app = make_monitor()
    async with app.run_test(size=(120, 36)) as pilot:
        await drawn(pilot, app)
        assert "Stop" in app.screen.query_one("KeyHints").text
        fake.put(status=Status.FAILED, message="train failed: CUDA out of memory (lower training.micro_batch)")
        await until(pilot, lambda: "Resume" in app.screen.query_one("KeyHints").text)
        assert "Stop" not in app.screen.query_one("KeyHints").text
        assert "lower training.micro_batch" in app.screen.query_one("#progress").text
        await pilot.press("s")
        assert not isinstance(app.screen, ConfirmScreen)
        await pilot.press("r")
        await until(pilot, lambda: services.asked == ["resume night"])


async def test_charts_walk_through_the_metrics_and_never_run_out(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        titles = []
        for _ in range(6):
            titles.append(app.screen.query_one("#chart", Chart).picture.title)
            await pilot.press("c")
        assert titles[:5] == ["loss", "throughput", "gradient norm", "learning rate", "iteration time"]
        assert titles[5] == "loss"


async def test_a_cursor_tells_single_values_and_escape_takes_it_away(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        chart = app.screen.query_one("#chart", Chart)
        chart.focus()
        await pilot.press("home")
        await until(pilot, lambda: "1: 5.870 (5.526 to 6.100)" in chart.text)
        await pilot.press("escape")
        assert chart.cursor is None
        assert isinstance(app.screen, MonitorScreen)


async def test_the_first_place_under_the_cursor_is_that_of_the_first_value(make_app, runs_root):
    fake = FakeRun(runs_root, iterations=100_000)
    fake.metrics(1, 120)
    app = make_app(lambda: MonitorScreen(fake.run))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.screen.history.iteration == 120, 60.0)
        chart = app.screen.query_one("#chart", Chart)
        chart.picture.series.add(90_000, 2.0)  # so that a cell holds many hundreds
        chart.redraw()
        chart.focus()
        await pilot.press("home")
        await until(pilot, lambda: "1: " in chart.text and "0: " not in chart.text, 60.0)


async def test_the_log_axis_is_told(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        chart = app.screen.query_one("#chart", Chart)
        chart.focus()
        await pilot.press("y")
        await until(pilot, lambda: "log  " in chart.text)


async def test_a_search_jumps_and_walks_on(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        log = app.screen.query_one(LogView)
        await pilot.press("slash", *"warn", "enter")
        await pilot.pause()
        assert log.match_line is None
        await pilot.press("slash")
        app.screen.query_one("#search", Input).value = r"iteration\s+(3|30)/"
        await pilot.press("enter")
        await until(pilot, lambda: log.match_line == 31)
        await pilot.press("N")
        await until(pilot, lambda: log.match_line == 4)
        await pilot.press("n")
        await until(pilot, lambda: log.match_line == 31)
        assert not log.is_following


async def test_a_wrong_expression_is_told(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        await pilot.press("slash")
        app.screen.query_one("#search", Input).value = "("
        await pilot.press("enter")
        await pilot.pause()
        assert app.screen.query_one("#search").display
        assert any("no regular expression" in note.message for note in app._notifications)


async def test_the_log_scrolls_both_ways_and_follows_again(make_monitor, fake):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        log = app.screen.query_one(LogView)
        await pilot.press("home")
        await until(pilot, lambda: "building the model" in log.text)
        await pilot.press("right")
        await until(pilot, lambda: "column 17" in log.text)
        await pilot.press("f")
        fake.log("the very last line\n", rank=1)
        log.poll()
        await until(pilot, lambda: "the very last line" in log.text)


async def test_other_logs_are_a_key_away(make_monitor, fake):
    fake.log("from rank zero\n", rank=0)
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        log = app.screen.query_one(LogView)
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "from rank zero" in log.text)
        fake.put(checkpoint=121)
        await until(pilot, lambda: app.screen.state.checkpoint == 121)
        assert "from rank zero" in log.text


async def test_the_log_that_was_chosen_stays_when_another_rank_fails(make_monitor, fake):
    for rank in (0, 2):
        fake.log(f"from rank {rank}\n", rank=rank)
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn_with(pilot, app, "from rank 2")
        log = app.screen.query_one(LogView)
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "train · rank 1" in log.text)
        (log.paths[0].parent / "error-rank-0.json").write_text("{}")
        fake.put(checkpoint=121)
        await until(pilot, lambda: app.screen.state.checkpoint == 121)
        assert "train · rank 1" in log.text
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: "train · launcher" in log.text)


async def test_a_share_that_is_silent_holds_up_no_key(make_monitor, fake, monkeypatch):
    fake.log("from rank zero\n", rank=0)
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        log = app.screen.query_one(LogView)
        await pilot.press("a")
        await until(pilot, lambda: "train · 2 ranks" in log.text)
        answers = Event()
        monkeypatch.setattr("gptoss_tui.feed.rank_logs", lambda _: answers.wait(LIMIT_S) and ())
        app.screen.choose_log()
        assert not answers.is_set() and "train · 2 ranks" in log.text
        answers.set()


async def test_a_share_that_is_silent_from_the_start_is_told(make_monitor, monkeypatch):
    answers = Event()
    preview = feed.Reader.preview
    monkeypatch.setattr(feed.Reader, "preview", lambda reader: answers.wait(LIMIT_S) and preview(reader))
    monkeypatch.setattr(job, "SILENT_S", 0.5)
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "does not answer" in app.screen.title_bar.text)
        answers.set()
        await until(pilot, lambda: "running" in app.screen.title_bar.text)


async def test_the_logs_of_all_ranks_are_one_with_a(make_monitor, fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake.log("[2026-11-22 07:00:02] from rank one\n", rank=1)
    fake.log("[2026-11-22 07:00:01] RuntimeError: from rank zero\n", rank=0)
    app = make_monitor()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await drawn_with(pilot, app, "from rank one")
        log = app.screen.query_one(LogView)
        await pilot.press("a")
        await until(pilot, lambda: "train · 2 ranks" in log.text and "0 [2026-11-22 07:00:01] Run" in log.text)
        await pilot.press("slash", *"from rank one", "enter")
        await until(pilot, lambda: log.match_line is not None)
        await pilot.press("e")
        await until(pilot, lambda: "rank zero" in log._file.line(log.match_line))
        await pilot.press("v", "v", "x")
        await until(pilot, lambda: list(tmp_path.glob("night-*-all-errors-*.log")))
        [saved] = tmp_path.glob("night-*.log")
        assert saved.read_text() == "0 [2026-11-22 07:00:01] RuntimeError: from rank zero\n"
        await pilot.press("a")
        await until(pilot, lambda: "train · rank 1" in log.text)


async def test_one_rank_alone_has_nothing_to_join(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await drawn(pilot, app)
        await pilot.press("a")
        await until(pilot, lambda: any("no other rank" in note.message for note in app._notifications))
        assert "train · rank 1" in app.screen.query_one("#log").text


async def test_a_wide_screen_has_four_charts_and_everything_beside_them(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(240, 67)) as pilot:
        await drawn(pilot, app)
        charts = [chart for chart in app.screen.query(Chart) if chart.display]
        await until(pilot, lambda: all("no values yet" not in chart.text for chart in charts))
        assert [chart.picture.title for chart in charts] == ["loss", "throughput", "learning rate", "gradient norm"]
        corners = {(chart.region.x, chart.region.y) for chart in charts}
        assert len({x for x, _ in corners}) == len({y for _, y in corners}) == 2
        assert app.screen.query_one("#steps").display and app.screen.query_one("#events").display
        await pilot.press("c", "c", "c", "c")
        titles = [chart.picture.title for chart in charts]
        assert len(set(titles)) == 4 and {"throughput", "loss"} <= set(titles) and titles[0] == "iteration time"
        await pilot.resize_terminal(160, 45)
        await until(pilot, lambda: sum(chart.display for chart in charts) == 2)


async def test_a_screen_of_one_cell_and_back(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(240, 67)) as pilot:
        await drawn(pilot, app)
        for size in ((1, 1), (80, 24), (2, 60), (300, 1), (1, 1), (160, 45)):
            await pilot.resize_terminal(*size)
            app.screen.tick()
            await pilot.press("a", "c", "right", "l", "l", "w")
            await pilot.pause()
        await until(pilot, lambda: "iteration 120 / 200" in app.screen.query_one("#progress").text)


async def test_a_panel_fills_the_screen_and_gives_it_back(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        log = app.screen.query_one(LogView)
        await pilot.press("l")
        await until(pilot, lambda: log.size.height >= 20)
        await pilot.press("escape")
        await until(pilot, lambda: log.size.height < 12)
        assert isinstance(app.screen, MonitorScreen)


async def test_gpus_are_shown_where_there_are_some(make_monitor, services):
    services._machine = dgx()
    app = make_monitor()
    async with app.run_test(size=(120, 40)) as pilot:
        await drawn(pilot, app)
        app.screen._sample_gpus()
        await until(pilot, lambda: "67.5/80 GiB" in app.screen.query_one("#gpus").text)
        assert "97 %" in app.screen.query_one("#gpus").text


@pytest.mark.parametrize("elsewhere", ["described", "host"])
async def test_gpus_here_are_not_those_of_a_run_elsewhere(make_monitor, services, fake, elsewhere):
    services._machine = replace(dgx(), is_described=elsewhere == "described")
    if elsewhere == "host":
        fake.put(host="another")
    app = make_monitor()
    async with app.run_test(size=(120, 40)) as pilot:
        await drawn(pilot, app)
        await until(pilot, lambda: app.machine is not None and app.screen.state is not None)
        assert not app.screen.has_class("-has-gpus")
        app.screen._sample_gpus()
        await pilot.pause()
        assert app.screen.query_one("#gpus").text == ""


async def test_garbage_in_the_run_directory_is_survived(make_monitor, fake):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        records = [{"iteration": 5e3}, {"iteration": -1, "loss": 1}, {"iteration": 121, "loss": "high"}, {"loss": 2},
                   {"iteration": True, "loss": 3}, {"iteration": 122, "loss": None, "grad_norm": 1e400},
                   {"iteration": 10**400, "loss": 1.0}, {"iteration": 123, "grad_norm": 10**400}]  # fmt: skip
        with fake.run.metrics.open("ab") as file:
            file.write(b"\xff\xfe\n" + b"".join(json.dumps(record).encode() + b"\n" for record in records))
            file.write(b'{"iteration": 130, "loss": NaN}\n')
        fake.event("progress", "x", step="train", done="many", total=None)
        for total in (10**400, 1e300, -5):
            fake.event("progress", "x", step="train", unit="iterations", done=1, total=total)
        append_line(fake.run.metrics, {"iteration": 129, "loss": 2.0, "iteration_s": 10**400})
        append_line(fake.run.events, {"kind": 7, "message": ["\x1b[31m"], "t": "noon"})
        append_line(fake.run.metrics, {"iteration": 131, "loss": 1.7777})
        await until(pilot, lambda: "1.778" in app.screen.query_one("#chart").text)
        assert "1 not finite" in app.screen.query_one("#chart").text


async def test_an_update_costs_few_bytes(make_monitor, fake):
    """Everything changes at once: chart, facts, strip, progress and the whole log panel."""
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        written = record_writes(app)
        fake.metrics(121, 123)
        fake.log("".join(f" iteration {n:8d}/     200 | lm loss: 2.1 |\n" for n in (121, 122, 123)), rank=1)
        app.screen.query_one(LogView).poll()
        await until(pilot, lambda: app.screen.history.iteration == 123)
        app.screen.tick()
        await pilot.pause()
        total = sum(len(text.encode()) for text in written)
        assert 100 < total < BUDGET_BYTES


async def test_nothing_new_costs_nothing(make_monitor):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        await pilot.pause()
        written = record_writes(app)
        for _ in range(3):
            app.screen.tick()
            app.screen._draw_charts()
            app.screen.query_one(LogView).poll()
            await pilot.pause()
        assert written == []


async def test_pieces_of_a_long_log_are_taken_in_one_after_another(make_monitor, fake, monkeypatch):
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await drawn(pilot, app)
        log = app.screen.query_one(LogView)
        monkeypatch.setattr(log_file, "CHUNK_BYTES", 4)
        fake.log("more\n" * 10_000, rank=1)
        for _ in range(5):  # as the clock, the change of the log and the keys do
            log.poll()
        assert log._file.is_behind
        assert len([timer for timer in log._timers if timer._task and not timer._task.cancelling()]) == 1


async def test_what_stays_is_not_looked_through_for_garbage_until_the_screen_is_left(make_monitor, monkeypatch):
    monkeypatch.setattr(base, "SETTLED_S", 0.1)
    app = make_monitor()
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: gc.get_freeze_count() > 10_000)
    assert gc.get_freeze_count() == 0


async def test_a_waiting_run_says_so(make_app, runs_root):
    fake = FakeRun(runs_root, "waiting")
    fake.put(status=Status.PENDING, supervisor=None)
    app = make_app(lambda: MonitorScreen(fake.run), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "○ pending" in app.screen.title_bar.text)
        assert "no values yet" in app.screen.query_one("#chart").text


async def test_a_run_that_is_gone_is_told(make_app, runs_root):
    fake = FakeRun(runs_root, "gone")
    fake.run.state.unlink()
    app = make_app(lambda: MonitorScreen(fake.run))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: any("cannot be read" in note.message for note in app._notifications))


async def test_a_failed_run_is_explained_changed_and_resumed(make_monitor, fake, services):
    fake.log("IndexError: index out of range in self\n")
    with_settings(fake, **{"data.tokenizer": "/other"})
    fake.put(status=Status.FAILED, message="train failed")
    app = make_monitor()
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.screen.settings and "Why?" in app.screen.query_one("KeyHints").text)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        told = str(app.screen.query_one("#text", Static).render())
        assert "data.tokenizer: /other → " in told and "Next: " in told
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, MonitorScreen))
        assert services.asked == []
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        await pilot.press("right", "enter")
        await until(pilot, lambda: services.asked == ["resume night data.tokenizer="])


async def test_an_unknown_failure_is_said_to_be_one(make_monitor, fake):
    fake.put(status=Status.FAILED, message="train failed")
    app = make_monitor()
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.screen.state)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused)
        told = str(app.screen.query_one("#text", Static).render())
        assert "not in the catalogue" in told and "jumps to the first error" in told


async def test_a_fresh_alert_is_shown_and_an_old_one_only_listed(make_monitor, fake):
    facts = {"severity": "warning", "evidence": "5 to 9", "next_step": "wait"}
    append_line(fake.run.events, {"t": NOW - 4000, "kind": "alert", "message": "the old one", **facts})
    app = make_monitor()
    async with app.run_test(size=(160, 45), notifications=True) as pilot:
        await drawn(pilot, app)
        await until(pilot, lambda: "the old one" in app.screen.query_one("#events").text)
        append_line(fake.run.events, {"t": NOW, "kind": "alert", "message": "the loss jumped", **facts})
        await until(pilot, lambda: app._notifications)
        [note] = app._notifications
        assert (note.title, note.severity) == ("the loss jumped", "warning")
        assert note.message == "5 to 9\nnext: wait"


async def test_plan_and_measurement_stand_beside_each_other(make_monitor, fake):
    with_plan(fake, {"tokens_per_s": 25_000.0, "iteration_s": 0.2, "tflops_per_gpu": 400.0, "mfu": 0.4})
    append_line(fake.run.metrics, {"iteration": 121, "tokens_per_s": 20_000.0, "tflops_per_gpu": 350.0})
    app = make_monitor()
    async with app.run_test(size=(160, 45)) as pilot:
        await until(pilot, lambda: "of the plan" in app.screen.query_one("#facts").text)
        facts = app.screen.query_one("#facts").text
        assert facts.split("of the plan")[1].split()[:2] == ["80", "%"] and facts.split("MFU")[1].split()[:2] == [
            "35.0",
            "%",
        ]
        chart = app.screen.query_one("#second-chart").text
        assert "plan 25.0k" in chart and "╌ plan ╌" in chart


async def test_one_slow_iteration_is_no_failed_plan(make_monitor, fake):
    with_plan(fake, {"tokens_per_s": 20_000.0})
    append_line(fake.run.metrics, {"iteration": 121, "tokens_per_s": 5_000.0, "iteration_s": 1.0})
    app = make_monitor()
    async with app.run_test(size=(160, 45)) as pilot:
        facts = app.screen.query_one("#facts")
        await until(pilot, lambda: "5000" in facts.text or "5.00k" in facts.text)
        # As many tokens in the usual quarter of a second.
        await until(pilot, lambda: facts.text.split("of the plan")[1].split()[:2] == ["100", "%"])


async def test_until_the_first_iteration_its_preparations_are_told(make_app, runs_root):
    fake = FakeRun(runs_root)
    fake.event("phase", "building the model", step="train")
    app = make_app(lambda: MonitorScreen(fake.run), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        progress = app.screen.query_one("#progress")
        await until(pilot, lambda: "building the model …  200 iterations" in progress.text)
        fake.metrics(1, 2)
        await until(pilot, lambda: "iteration 2 / 200" in progress.text)


async def test_zoom_shows_a_part_and_follows_its_end(make_monitor, fake):
    app = make_monitor()
    async with app.run_test(size=(120, 36)) as pilot:
        await drawn(pilot, app)
        chart = app.screen.query_one("#chart", Chart)
        chart.focus()
        await pilot.press("plus", "plus")
        assert "zoom 4x" in chart.text and chart._shown == (90.0, 120.0)
        fake.metrics(121, 130)
        await until(pilot, lambda: chart._shown == (97.5, 130.0) or chart._shown == (100.0, 130.0))
        await pilot.press("home")
        assert chart._shown[0] == 0.0
        fake.metrics(131, 132)
        await until(pilot, lambda: app.screen.history.iteration == 132)
        assert chart._shown[0] == 0.0
        await pilot.press("0")
        assert "zoom" not in chart.text


async def test_the_log_narrows_to_errors_wraps_copies_and_is_saved(make_monitor, fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake.log("RuntimeError: the first\nfine\nRuntimeError: the second " + "x" * 200 + "END\n", rank=1)
    app = make_monitor()
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: "the second" in app.screen.query_one("#log").text)
        log = app.screen.query_one(LogView)
        await pilot.press("v", "v")
        await until(pilot, lambda: log._row_count == 2)
        assert "errors" in log.text and "number of" not in log.text and "fine" not in log.text
        await pilot.press("w")
        assert "END" in log.text
        await pilot.press("y")
        assert app.clipboard.startswith("RuntimeError: the first\nRuntimeError: the second")
        await pilot.press("x")
        await until(pilot, lambda: list(tmp_path.glob("night-*-rank-1-errors-*.log")))
        [saved] = tmp_path.glob("night-*.log")
        assert saved.read_text().count("\n") == 2
        await pilot.press("v")
        await until(pilot, lambda: log._row_count > 100)
        await pilot.press("e")
        await until(pilot, lambda: log.match_line is not None)
        assert "the first" in log._file.line(log.match_line)


def with_settings(fake, **values) -> None:
    settings_file.save(settings_file.load(fake.run.settings).with_values(values), fake.run.settings)


def with_plan(fake, throughput) -> None:
    plan = fake.run.read_plan()
    fake.run.plan.write_text(replace(plan, estimate={**plan.estimate, "throughput": throughput}).to_json())
