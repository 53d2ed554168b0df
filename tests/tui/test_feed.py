"""Reading a run directory: batches, damage, and runs that change under the reader."""

from __future__ import annotations

import os
from dataclasses import replace

from engine.processes import ProcessId
from engine.run.state import Status
from gptoss_tui import feed
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


def test_a_state_that_cannot_be_read_is_told_once(runs_root):
    fake = FakeRun(runs_root)
    reader = Reader(fake.run)
    fake.run.state.unlink()
    assert "cannot be read" in reader.read().problem
    assert reader.read().problem == ""
    fake.run.state.write_text("{ half")
    assert "damaged" in reader.read().problem


def test_the_log_of_a_training_is_its_last_rank(runs_root):
    fake = FakeRun(runs_root)
    for rank in (0, 1, 10):
        fake.log("x\n", rank)
    titles = [title for title, _ in feed.log_files(fake.run, fake.state)]
    assert titles == ["train · rank 10", "train · rank 1", "train · rank 0", "train · launcher", "supervisor"]


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
