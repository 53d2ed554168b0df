"""User stories of watching a training that somebody else started."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from engine.monitor import jobs as jobs_module
from engine.monitor.jobs import Watched, find_jobs
from engine.run.state import Status
from gptoss_tui import foreign_job
from gptoss_tui.foreign_job import ForeignJob
from gptoss_tui.screens.choose import ChooseScreen
from gptoss_tui.screens.confirm import ConfirmScreen
from gptoss_tui.screens.watch import WatchScreen
from tests.tui.doubles import until

CAPTURED = Path(__file__).parent.parent / "captured"
LINES = (CAPTURED / "logs" / "megatron-bridge-0.6.2-last-rank.log").read_text().splitlines(keepends=True)
ITERATIONS = [line for line in LINES if " iteration " in line and "lm loss:" in line]
LIMIT_S = 60


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(foreign_job, "RESCAN_S", 0.2)


@pytest.fixture
def open_watch(make_app):
    """The screen on some places, with the real clock: what is watched is told by it."""

    def opened(*places: Path):
        names = [str(place) for place in places]
        watched = Watched(places=names, jobs=find_jobs(names))
        return make_app(lambda: WatchScreen(watched), clock=time.time)

    return opened


def iteration_of(app) -> int:
    return app.screen.history.iteration


async def test_a_log_is_shown_as_a_run_is(open_watch, tmp_path):
    log = tmp_path / "train.log"
    log.write_text("".join(ITERATIONS[:30]))
    app = open_watch(log)
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: iteration_of(app) == 30, LIMIT_S)
        await until(pilot, lambda: "running" in app.screen.title_bar.text, LIMIT_S)
        assert "train.log" in app.screen.title_bar.text
        await until(pilot, lambda: "iteration 30 / 60" in app.screen.query_one("#progress").text, LIMIT_S)
        await until(pilot, lambda: "iteration       30/" in app.screen.query_one("#log").text, LIMIT_S)
        with log.open("a") as file:
            file.write("".join(ITERATIONS[30:40]))
        await until(pilot, lambda: iteration_of(app) == 40, LIMIT_S)
        assert "gradient norm" in app.screen.query_one("#facts").text
        assert not app.screen.query_one("#steps").display


@pytest.mark.parametrize("name", ["rehearsal", "wandb"])
async def test_event_files_are_shown_too(open_watch, tmp_path, name):
    for file in (CAPTURED / name).iterdir():
        if ".tfevents." in file.name or file.suffix == ".wandb":
            shutil.copy(file, tmp_path)
    app = open_watch(tmp_path)
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: app.screen.history.last("loss") is not None, LIMIT_S)
        await until(pilot, lambda: "no values yet" not in app.screen.query_one("#chart").text, LIMIT_S)
        assert "no log here" in app.screen.query_one("#log").text
        assert "nothing written" not in app.screen.query_one("#log").text
        await until(pilot, lambda: "iteration " in app.screen.query_one("#progress").text, LIMIT_S)


async def test_a_log_that_is_rotated_and_one_that_is_cut_go_on(open_watch, tmp_path):
    log = tmp_path / "train.log"
    log.write_text("".join(ITERATIONS[:20]))
    app = open_watch(log)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: iteration_of(app) == 20, LIMIT_S)
        log.rename(tmp_path / "train.log.1")
        log.write_text("".join(ITERATIONS[20:30]))
        await until(pilot, lambda: iteration_of(app) == 30, LIMIT_S)
        assert app.screen.history.series["loss"].points == 30
        log.write_text("".join(ITERATIONS[10:12]))  # cut, and resumed from a checkpoint
        await until(pilot, lambda: iteration_of(app) == 12, LIMIT_S)
        await until(pilot, lambda: "iteration       12/" in app.screen.query_one("#log").text, LIMIT_S)


async def test_the_newest_values_of_a_long_log_come_before_it_is_read(open_watch, tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_job, "LONG_BYTES", 1000)
    read_on = threading.Event()
    read = ForeignJob.read
    monkeypatch.setattr(ForeignJob, "read", lambda self, now: read_on.wait(LIMIT_S) and read(self, now))
    log = tmp_path / "train.log"
    log.write_text("".join(ITERATIONS))
    app = open_watch(log)
    async with app.run_test(size=(120, 36)) as pilot:
        try:
            await until(pilot, lambda: iteration_of(app) == 60, LIMIT_S)
            await until(pilot, lambda: "iteration 60 / 60" in app.screen.query_one("#progress").text, LIMIT_S)
            assert app.screen.history.last("skipped") is None
        finally:
            read_on.set()
        await until(pilot, lambda: app.screen.history.last("skipped") == 0, LIMIT_S)
        assert app.screen.history.series["loss"].points == 60


async def test_another_training_of_the_place_is_a_key_away(open_watch, tmp_path):
    for number, count in ((77, 20), (78, 30)):
        (tmp_path / f"slurm-{number}.out").write_text("".join(ITERATIONS[:count]))
    os.utime(tmp_path / "slurm-77.out", (time.time() - 100,) * 2)
    app = open_watch(tmp_path)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: iteration_of(app) == 30, LIMIT_S)
        await until(pilot, lambda: "slurm-78.out · 1 of 2" in app.screen.title_bar.text, LIMIT_S)
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, ChooseScreen) and app.focused, LIMIT_S)
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, WatchScreen) and iteration_of(app) == 20, LIMIT_S)
        await until(pilot, lambda: "slurm-77.out · 2 of 2" in app.screen.title_bar.text, LIMIT_S)
        await until(pilot, lambda: "iteration       20/" in app.screen.query_one("#log").text, LIMIT_S)
        (tmp_path / "slurm-79.out").write_text("".join(ITERATIONS[:5]))
        await until(pilot, lambda: any("1 training more" in note.message for note in app._notifications), LIMIT_S)


async def test_nothing_of_the_training_before_stays_until_the_chosen_one_is_read(open_watch, tmp_path, monkeypatch):
    read_on = threading.Event()
    read = ForeignJob.read

    def wait_for_the_other(self, now):
        return ("77" not in self.job.name or read_on.wait(LIMIT_S)) and read(self, now)

    monkeypatch.setattr(ForeignJob, "read", wait_for_the_other)
    for number, count in ((77, 20), (78, 30)):
        (tmp_path / f"slurm-{number}.out").write_text("".join(ITERATIONS[:count]))
    os.utime(tmp_path / "slurm-77.out", (time.time() - 100,) * 2)
    app = open_watch(tmp_path)
    async with app.run_test(size=(120, 36)) as pilot:
        try:
            await until(pilot, lambda: iteration_of(app) == 30, LIMIT_S)
            await until(pilot, lambda: "loss" in app.screen.query_one("#facts").text, LIMIT_S)
            await pilot.press("o")
            await until(pilot, lambda: isinstance(app.screen, ChooseScreen) and app.focused, LIMIT_S)
            await pilot.press("down", "enter")
            await until(pilot, lambda: isinstance(app.screen, WatchScreen), LIMIT_S)
            await until(pilot, lambda: "no values yet" in app.screen.query_one("#chart").text, LIMIT_S)
            told = "".join(app.screen.query_one(f"#{panel}").text for panel in ("facts", "progress", "events"))
            assert not told.strip()
        finally:
            read_on.set()
        await until(pilot, lambda: iteration_of(app) == 20, LIMIT_S)


async def test_a_rank_that_joins_later_is_part_of_the_training(open_watch, tmp_path):
    (tmp_path / "rank-0.log").write_text("".join(ITERATIONS[:5]))
    app = open_watch(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: iteration_of(app) == 5, LIMIT_S)
        (tmp_path / "rank-1.log").write_text("".join(ITERATIONS[5:9]))
        await until(pilot, lambda: iteration_of(app) == 9, LIMIT_S)
        await pilot.press("a")
        await until(pilot, lambda: "2 ranks" in app.screen.query_one("#log").text, LIMIT_S)


async def test_the_end_of_a_training_is_told_by_whichever_rank(open_watch, tmp_path):
    (tmp_path / "rank-0.log").write_text("evaluating at iteration 60\n[after training is done] datetime: now\n")
    (tmp_path / "rank-1.log").write_text("".join(ITERATIONS))
    app = open_watch(tmp_path)
    async with app.run_test(size=(160, 45)) as pilot:
        await until(pilot, lambda: app.screen.state and app.screen.state.status is Status.FINISHED, LIMIT_S)
        # When lines without a time were written is not known.
        events = app.screen.query_one("#events")
        await until(pilot, lambda: "evaluating" in events.text, LIMIT_S)
        assert not any(char.isdigit() for line in events.text.splitlines() for char in line[:8])


async def test_a_failed_training_is_told_and_explained(open_watch, tmp_path):
    log = tmp_path / "train.log"
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
    log.write_text("".join(ITERATIONS[:9]) + error)
    os.utime(log, (time.time() - 7200,) * 2)
    app = open_watch(log)
    async with app.run_test(size=(100, 30), notifications=True) as pilot:
        await until(pilot, lambda: app.screen.state and app.screen.state.status is Status.FAILED, LIMIT_S)
        await until(pilot, lambda: "the last was iteration 9 of 60" in app.screen.query_one("#progress").text, LIMIT_S)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen) and app.focused, LIMIT_S)
        # There is nothing to resume.
        assert [button.id for button in app.screen.query("Button")] == ["choice-no"]
        assert not app._notifications  # an old failure is no news


async def test_silence_is_told_and_no_alarm_is_raised_over_an_old_log(open_watch, tmp_path):
    log = tmp_path / "train.log"
    log.write_text("".join(ITERATIONS[:9]))
    os.utime(log, (time.time() - 7200,) * 2)
    app = open_watch(log)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await until(pilot, lambda: "quiet" in app.screen.title_bar.text, LIMIT_S)
        assert "since 2 h" in app.screen.query_one("#progress").text
        assert not app._notifications
        with log.open("a") as file:
            file.write(ITERATIONS[9])
        await until(pilot, lambda: "running" in app.screen.title_bar.text, LIMIT_S)


async def test_alerts_of_a_foreign_log_are_listed(open_watch, tmp_path):
    log = tmp_path / "train.log"
    broken = ITERATIONS[20]
    broken = broken.replace(broken[broken.index(" lm loss") : broken.index(" loss scale")], "")
    log.write_text("".join([*ITERATIONS[:20], broken]))
    app = open_watch(log)
    async with app.run_test(size=(160, 45)) as pilot:
        events = app.screen.query_one("#events")
        await until(pilot, lambda: "not a number" in events.text or "NaN" in events.text, LIMIT_S)


async def test_a_hostile_log_is_survived_and_its_numbers_are_right(open_watch, tmp_path):
    """Half lines, colours, progress bars, clocks set back, NaN, other programs' bytes, and a terminal of one cell."""
    log = tmp_path / "train.log"
    log.write_text("".join(ITERATIONS[:10]))
    app = open_watch(log)
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: iteration_of(app) == 10, LIMIT_S)
        half = ITERATIONS[10][: len(ITERATIONS[10]) // 2]
        pieces = [
            b"\xff\x00\x1b]0;title\x07\x1b[2J" * 50 + b"\n",
            b"\x1b[31m" + ITERATIONS[10].strip().encode() + b"\x1b[0m\n",
            b"\r".join(b"tqdm %d%%" % n for n in range(100)) + b"\n",
            ITERATIONS[11].replace("2026-11-22 09", "2025-11-22 09").encode(),
            b"x" * 300_000 + b"\n",
            b" iteration 999999999999999999999/ 60 | lm loss: 1.0E+00 |\n",
            half.encode(),
        ]
        with log.open("ab") as file:
            for piece in pieces:
                file.write(piece)
                file.flush()
                await pilot.resize_terminal(1, 1)
                await pilot.pause()
                await pilot.resize_terminal(120, 36)
                await pilot.pause()
        await until(pilot, lambda: iteration_of(app) == 12, LIMIT_S)
        with log.open("a") as file:
            file.write("\n" + ITERATIONS[12])
        await until(pilot, lambda: iteration_of(app) == 13, LIMIT_S)
        series = app.screen.history.series["loss"]
        assert series.points == 13 and series.last_iteration == 13
        log_text = app.screen.query_one("#log").text
        assert "\x1b" not in log_text and "\x00" not in log_text


@pytest.mark.parametrize("name", ["megatron-lm-0.12.0.log", "megatron-lm-0.20-dev.log", "nemo-1.log", "nemo-2.log"])
async def test_other_formats_draw_a_curve(open_watch, name):
    app = open_watch(CAPTURED / "logs" / name)
    async with app.run_test(size=(120, 36)) as pilot:
        await until(pilot, lambda: "no values yet" not in app.screen.query_one("#chart").text, LIMIT_S)
        await until(pilot, lambda: app.screen.state is not None, LIMIT_S)


async def test_a_file_of_another_program_shows_its_text_and_no_number(open_watch, tmp_path):
    place = tmp_path / "notes.txt"
    place.write_text("nothing of a training\n")
    app = open_watch(place)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "nothing of a training" in app.screen.query_one("#log").text, LIMIT_S)
        assert "no values yet" in app.screen.query_one("#chart").text


def test_a_large_tree_is_looked_at_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_module, "MOST_DIRECTORIES", 5)
    for number in range(20):
        (tmp_path / f"{number:02d}").mkdir()
        (tmp_path / f"{number:02d}" / "metrics.jsonl").write_text("")
    assert len(find_jobs([str(tmp_path)])) == 4
