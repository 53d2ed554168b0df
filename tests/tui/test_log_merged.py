"""The logs of all ranks as one: order, growth, search, filter, and what rotates meanwhile."""

from __future__ import annotations

import re

import pytest

from gptoss_tui.log_file import LineFilter
from gptoss_tui.log_lines import PATTERNS, Level
from gptoss_tui.log_merged import MergedLog, export_merged


@pytest.fixture
def ranks(tmp_path):
    return [tmp_path / f"rank-{rank}.log" for rank in range(3)]


def filled(log: MergedLog) -> MergedLog:
    log.update()
    while log.is_behind:
        log.update()
    return log


def rows(log: MergedLog) -> list[str]:
    return [log.label(number) + log.line(number) for number in range(len(log))]


def at(second: int, text: str) -> str:
    return f"[2026-11-22 07:16:{second:02d}] {text}\n"


def test_lines_stand_in_the_order_of_their_times_and_those_without_stay_with_theirs(ranks):
    ranks[0].write_text(at(1, "a") + "  more of a\n" + at(4, "b"))
    ranks[1].write_text("first of all\n" + at(3, "c"))
    ranks[2].write_text("[rank2]:W1122 07:16:02.500000 d\n" + "2026-11-22 07:16:05,123 - INFO - e\n")
    assert [row.replace("[2026-11-22 07:16:", "[") for row in rows(filled(MergedLog(ranks)))] == [
        "1 first of all", "0 [01] a", "0   more of a", "2 [rank2]:W1122 07:16:02.500000 d", "1 [03] c", "0 [04] b",
        "2 2026-11-22 07:16:05,123 - INFO - e",
    ]  # fmt: skip


def test_new_lines_come_in_the_order_of_arrival_and_half_ones_wait(ranks):
    for rank in ranks:
        rank.write_text(at(30, rank.stem))
    log = filled(MergedLog(ranks))
    with ranks[1].open("a") as file:
        file.write(at(10, "set back") + "half")
    filled(log)
    with ranks[0].open("a") as file:
        file.write(at(31, "later"))
    filled(log)
    assert [row[0] for row in rows(log)] == ["0", "1", "2", "1", "0"]
    assert "half" not in rows(log)[-1]


def test_a_rank_keeps_its_own_order_when_its_clock_is_set_back(ranks):
    ranks[0].write_text(at(20, "one") + at(5, "two") + at(21, "three"))
    ranks[1].write_text(at(10, "other"))
    assert [row[-5:].strip("] ") for row in rows(filled(MergedLog(ranks[:2])))] == ["other", "one", "two", "three"]


def test_large_files_in_pieces_are_in_order(ranks, monkeypatch):
    monkeypatch.setattr("gptoss_tui.log_file.CHUNK_BYTES", 300)
    monkeypatch.setattr("gptoss_tui.log_file.TIMED_BYTES", 100)
    monkeypatch.setattr("gptoss_tui.log_merged.PIECE_S", 0.0)
    monkeypatch.setattr("gptoss_tui.log_merged._ROWS_AT_ONCE", 7)
    for number, rank in enumerate(ranks):
        rank.write_text("".join(at(second, f"r{number}") for second in range(number, 60, 3)))
    log = MergedLog(ranks)
    seen = 0
    for _ in range(1000):
        log.update()
        assert len(log) >= seen
        seen = len(log)
        if not log.is_behind and seen == 60:
            break
    assert [log.line(n) for n in range(60)] == [at(n, f"r{n % 3}").rstrip() for n in range(60)]
    pattern = re.compile(rb"r1")
    assert [n for n in log.search(pattern, 5) if n is not None] == list(range(7, 60, 3))
    assert [n for n in log.search(pattern, 5, backwards=True) if n is not None] == [4, 1]


def test_the_first_error_of_all_ranks_is_found_and_errors_alone_are_left(ranks):
    ranks[0].write_text(at(1, "fine") + at(9, "RuntimeError: late"))
    ranks[1].write_text(at(2, "fine") + at(5, "RuntimeError: first"))
    log = filled(MergedLog(ranks[:2]))
    first = next(n for n in log.search(PATTERNS[Level.ERRORS], 0) if n is not None)
    assert "first" in log.line(first)
    errors = LineFilter(log, PATTERNS[Level.ERRORS])
    while errors.update():
        pass
    assert [log.label(n) for n in errors.numbers] == ["1 ", "0 "]


def test_a_rank_that_is_cut_and_one_that_is_not_there_yet(ranks):
    ranks[0].write_text(at(1, "old") * 3)
    log = filled(MergedLog(ranks))
    before = log.generation
    ranks[0].write_text(at(2, "new"))
    filled(log)
    assert log.generation > before and len(log) == 1 and "new" in log.line(0)
    ranks[2].write_text(at(3, "joined"))
    filled(log)
    assert rows(log)[-1].startswith("2 ") and len(log) == 2


def test_a_rank_that_goes_away_starts_everything_over_once(ranks):
    for rank, path in enumerate(ranks):
        path.write_text(at(rank, "text"))
    log = filled(MergedLog(ranks))
    ranks[1].unlink()
    filled(log)
    generation = log.generation
    for _ in range(3):
        log.update()
        assert len(log) == 2
    assert log.generation == generation


def test_a_search_ends_when_a_rank_is_cut_meanwhile(ranks, monkeypatch):
    monkeypatch.setattr("gptoss_tui.log_merged._ROWS_AT_ONCE", 10)
    for path in ranks:
        path.write_text(at(1, "hay") * 50)
    log = filled(MergedLog(ranks))
    search = log.search(re.compile(b"needle"), 0)
    assert next(search) is None
    ranks[0].write_text(at(1, "needle"))
    filled(log)
    assert list(search) == []


def test_more_ranks_than_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr("gptoss_tui.log_merged.MOST_OPEN", 2)
    paths = [tmp_path / f"rank-{n}.log" for n in range(12)]
    for n, path in enumerate(paths):
        path.write_text(at(n, f"text {n}"))
    log = filled(MergedLog(paths))
    assert all(file._descriptor is None for file in log._files)
    assert rows(log)[11] == "11 [2026-11-22 07:16:11] text 11"
    assert rows(log)[3].startswith(" 3 ")


def test_what_is_shown_is_saved(ranks, tmp_path):
    ranks[0].write_text(at(1, "fine") + at(9, "RuntimeError: \x1b[31mlate"))
    ranks[1].write_text(at(2, "fine"))
    assert export_merged(ranks[:2], Level.ALL, tmp_path / "all.txt") == 3
    assert export_merged(ranks[:2], Level.ERRORS, tmp_path / "errors.txt") == 1
    assert (tmp_path / "errors.txt").read_text() == "0 [2026-11-22 07:16:09] RuntimeError: late\n"
    assert (tmp_path / "all.txt").read_text().count("\n") == 3
