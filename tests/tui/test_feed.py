"""Reading a run directory: batches, damage, and runs that change under the reader."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest

from engine.hardware.gpu import Gpu
from engine.machine import Machine
from engine.plan.planner import make_plan
from engine.processes import ProcessId
from engine.run.state import Status
from engine.settings import Settings
from gptoss_tui import feed
from gptoss_tui.beside_plan import levels, peak_tflops, share_of_plan
from gptoss_tui.feed import Reader
from tests.tui.doubles import NOW, FakeRun, a_full_run


def test_everything_is_given_once(runs_root):
    fake = a_full_run(runs_root)
    reader = Reader(fake.run)
    first = reader.read()
    assert len(first.metrics) == 122
    assert [event["kind"] for event in first.events] == ["step-started", "checkpoint"]
    assert first.state is not None and first.state.status is Status.RUNNING
    assert not reader.read()
    fake.metrics(121, 123)
    assert [record["iteration"] for record in reader.read().metrics] == [121, 122, 123]


def test_a_half_line_waits_for_its_end_and_garbage_is_passed_over(runs_root):
    fake = FakeRun(runs_root)
    reader = Reader(fake.run)
    with fake.run.metrics.open("ab", buffering=0) as file:
        file.write(b'\x00\xff not json\n[1, 2]\n"text"\n{"iteration": 1, "lo')
        assert reader.read().metrics == []
        file.write(b'ss": 2.5}\n')
        assert reader.read().metrics == [{"iteration": 1, "loss": 2.5}]


def test_metrics_that_were_replaced_are_told(runs_root):
    fake = a_full_run(runs_root)
    reader = Reader(fake.run)
    reader.read()
    fake.run.metrics.write_text("")
    fake.metrics(1, 3)
    batch = reader.read()
    assert batch.restarted
    assert len(batch.metrics) == 3


def test_long_history_comes_in_pieces(runs_root):
    fake = FakeRun(runs_root)
    fake.metrics(1, 9000)
    reader = Reader(fake.run)
    first = reader.read()
    assert first.is_history
    total = len(first.metrics)
    while first.is_history:
        first = reader.read()
        total += len(first.metrics)
    assert total == 9000


def test_a_supervisor_that_died_is_seen_without_a_new_state(runs_root):
    fake = FakeRun(runs_root)
    reader = Reader(fake.run)
    assert reader.read().state is not None
    gone = ProcessId(pid=1, start_ticks=1, boot_id="another boot")
    text = replace(fake.state, supervisor=gone).to_json()
    fake.run.state.write_text(text)
    state = reader.read().state
    assert state is not None and state.status is Status.LOST


def test_a_sign_of_life_is_nothing_new_to_a_screen(runs_root):
    fake = FakeRun(runs_root)
    reader = Reader(fake.run)
    assert reader.read().state is not None
    fake.put(heartbeat=NOW + 1, iteration=7)
    assert not reader.read()
    fake.put(heartbeat=NOW + 2, checkpoint=7)
    assert reader.read().state.checkpoint == 7


def test_a_state_that_cannot_be_read_is_told_once(runs_root):
    fake = FakeRun(runs_root)
    reader = Reader(fake.run)
    fake.run.state.unlink()
    assert "cannot be read" in reader.read().problem
    assert reader.read().problem == ""
    fake.run.state.write_text("{ half")
    assert "damaged" in reader.read().problem


def test_a_damaged_state_is_told_once_and_read_again_when_it_is_whole(runs_root):
    fake = a_full_run(runs_root)
    reader = Reader(fake.run)
    reader.read()
    whole = fake.run.state.read_text()
    fake.run.state.write_text("{")
    told = [reader.read().problem for _ in range(3)]
    assert "damaged" in told[0] and told[1:] == ["", ""]
    fake.run.state.write_text(whole.replace('"iteration": 120', '"iteration": 121'))
    assert reader.read().state.iteration == 121
    fake.run.state.write_text("{")
    assert "damaged" in reader.read().problem


def test_the_log_of_a_training_is_its_last_rank(runs_root):
    fake = FakeRun(runs_root)
    for rank in (0, 1, 10):
        fake.log("x\n", rank)
    titles = [title for title, _ in feed.log_files(fake.run, fake.state)]
    assert titles == ["train · rank 10", "train · rank 1", "train · rank 0", "train · launcher", "supervisor"]


def test_logs_of_earlier_attempts_come_last(runs_root):
    fake = FakeRun(runs_root)
    fake.log("x\n", 0)
    for name in ("01-prepare", "02-convert"):
        (fake.run.attempts / name).mkdir()
        (fake.run.attempts / name / "rank-0.log").write_text("x\n")
    titles = [title for title, _ in feed.log_files(fake.run, fake.state)]
    assert titles == [
        "train · rank 0", "train · launcher", "supervisor", "convert · rank 0 · attempt 02",
        "convert · launcher · attempt 02", "prepare · rank 0 · attempt 01", "prepare · launcher · attempt 01",
    ]  # fmt: skip


def test_the_rank_that_failed_first_comes_first(runs_root):
    fake = FakeRun(runs_root)
    for rank in (0, 1, 2):
        fake.log("x\n", rank)
    for rank, moment in ((0, NOW), (1, NOW + 5)):
        path = fake.attempt / f"error-rank-{rank}.json"
        path.write_text("{}")
        os.utime(path, (moment, moment))
    assert feed.log_files(fake.run, fake.state)[0][0] == "train · rank 0"


def test_runs_are_listed_with_their_loss_and_damaged_ones_left_out(runs_root):
    a_full_run(runs_root, "good")
    FakeRun(runs_root, "broken").run.state.write_text("{}")
    (one,) = feed.overviews(runs_root)
    assert one.run.name == "good"
    assert one.iterations == 200
    assert one.loss is not None and 2 < one.loss < 3


def test_a_run_that_did_not_change_is_not_read_again(runs_root):
    fake = a_full_run(runs_root)
    (before,) = feed.overviews(runs_root)
    fake.run.metrics.unlink()
    (after,) = feed.overviews(runs_root, {before.run.name: before})
    assert after is before


def test_no_runs_directory_is_no_runs(tmp_path):
    assert feed.overviews(tmp_path / "nothing") == []


def test_a_long_run_is_seen_in_part_before_it_is_read(runs_root, monkeypatch):
    fake = FakeRun(runs_root, iterations=20_000)
    fake.metrics(1, 20_000)
    reader = Reader(fake.run)
    monkeypatch.setattr(feed, "LONG_BYTES", 1 << 40)
    assert reader.preview() is None
    monkeypatch.setattr(feed, "LONG_BYTES", 1 << 20)
    preview = reader.preview()
    iterations = [record["iteration"] for record in preview.metrics]
    assert iterations == sorted(iterations) and (iterations[0], iterations[-1]) == (1, 20_000)
    assert 800 < len(iterations) < 4000
    assert max(b - a for a, b in itertools.pairwise(iterations)) < 100
    assert preview.state is not None
    whole = reader.load(lambda: False)
    assert whole.history.series["loss"].points == 20_000 and whole.history.iteration == 20_000
    assert not reader.read()


def test_loading_ends_when_the_screen_is_left(runs_root):
    fake = FakeRun(runs_root, iterations=20_000)
    fake.metrics(1, 20_000)
    reader = Reader(fake.run)
    answers = iter([False, True])
    assert 0 < reader.load(lambda: next(answers)).history.iteration < 20_000


def test_the_planned_and_the_published_value_of_a_metric():
    gpus = Machine(gpus=tuple(Gpu(index=i, name="NVIDIA H100 80GB HBM3", memory_total_gib=79.6,
                                  compute_capability=(9, 0), nvlinks=18) for i in range(8)))  # fmt: skip
    chosen = {"model.name": "gpt-oss-20b", "training.goal": "sft", "training.sequence_length": 2048}
    settings = Settings().with_values(chosen)
    plan = make_plan(settings, gpus)
    planned, published = levels("tokens_per_s", plan)
    assert (planned.title, published.title) == ("plan", "published")
    assert planned.value == plan.estimate["throughput"]["tokens_per_s"]
    assert published.value == 8 * 4951  # the row of the same 8 GPUs, not the one with 32k tokens
    assert [one.title for one in levels("memory_gib", plan)] == ["plan"]
    assert levels("loss", plan) == () and levels("tokens_per_s", None) == ()
    assert peak_tflops(plan) == pytest.approx(989, rel=0.01)
    assert share_of_plan("tokens_per_s", planned.value / 2, plan) == 0.5
