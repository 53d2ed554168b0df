"""Logs of any size and any content by line number."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tui import log_file
from gptoss_tui.log_file import LineFilter, LogFile, readable


def indexed(path: Path) -> LogFile:
    log = LogFile(path)
    log.update()
    while log.is_behind:
        log.update()
    return log


def lines_of(log: LogFile) -> list[str]:
    return [log.line(n) for n in range(len(log))]


def test_a_file_that_is_not_there_is_empty_until_it_is(tmp_path):
    path = tmp_path / "rank-0.log"
    log = LogFile(path)
    assert (log.update(), len(log)) == (False, 0)
    path.write_text("one\ntwo")
    assert log.update()
    assert lines_of(log) == ["one", "two"]


def test_appended_lines_join_the_half_line_before(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("one\ntw")
    log = indexed(path)
    with path.open("a") as file:
        file.write("o\nthree\n")
    log.update()
    assert lines_of(log) == ["one", "two", "three"]


@pytest.mark.parametrize("how", ["cut", "replaced"])
def test_a_file_that_starts_over_is_read_anew(tmp_path, how):
    path = tmp_path / "a.log"
    path.write_text("an old line\n" * 50)
    log = indexed(path)
    if how == "cut":
        os.truncate(path, 0)
        path.write_text("new\n")
    else:
        other = tmp_path / "b.log"
        other.write_text("new\n" * 100)
        other.replace(path)
    log.update()
    assert set(lines_of(log)) == {"new"}


def test_a_file_that_vanishes_is_empty(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("x\n")
    log = indexed(path)
    path.unlink()
    assert log.update()
    assert len(log) == 0


def test_a_file_that_stays_away_loses_its_lines_once(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("x\n")
    log = indexed(path)
    path.unlink()
    log.update()
    generation = log.generation
    assert not log.update() and log.generation == generation


@pytest.mark.parametrize("backwards", [False, True])
def test_a_search_ends_when_the_file_is_cut_meanwhile(tmp_path, monkeypatch, backwards):
    monkeypatch.setattr(log_file, "CHUNK_BYTES", 64)
    path = tmp_path / "a.log"
    path.write_text("hay\n" * 1000)
    log = indexed(path)
    search = log.search(re.compile(b"needle"), 999 if backwards else 0, backwards=backwards)
    assert next(search) is None
    os.truncate(path, 40)
    log.update()
    assert list(search) == []


def test_a_line_cut_away_after_the_index_was_made_reads_as_empty(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("one\ntwo\n")
    log = indexed(path)
    os.truncate(path, 4)
    assert log.line(1) == ""


def test_a_large_file_is_indexed_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "CHUNK_BYTES", 100)
    path = tmp_path / "a.log"
    path.write_text("".join(f"line {n}\n" for n in range(1000)))
    log = LogFile(path)
    log.update()
    assert log.is_behind
    log = indexed(path)
    assert (len(log), log.line(777)) == (1000, "line 777")


@pytest.mark.parametrize("backwards", [False, True])
def test_a_search_finds_every_line_once_from_where_it_starts(tmp_path, monkeypatch, backwards):
    monkeypatch.setattr(log_file, "CHUNK_BYTES", 64)
    path = tmp_path / "a.log"
    path.write_text("".join(f"{'needle needle' if n % 10 == 3 else 'hay'} {n}\n" for n in range(100)))
    log = indexed(path)
    found = [n for n in log.search(re.compile(b"needle"), 50, backwards=backwards) if n is not None]
    assert found == ([43, 33, 23, 13, 3] if backwards else [53, 63, 73, 83, 93])


def test_a_search_lets_others_work(tmp_path, monkeypatch):
    monkeypatch.setattr(log_file, "CHUNK_BYTES", 64)
    path = tmp_path / "a.log"
    path.write_text("hay\n" * 1000)
    pauses = list(indexed(path).search(re.compile(b"needle"), 0))
    assert len(pauses) > 10
    assert set(pauses) == {None}


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07text", "text"),
        (b" 1%|#   \r 50%|##  \r100%|####", "100%|####"),
        (b"done\r\n", "done"),
        (b"a\tb", "a       b"),
        (b"bell\x07 null\x00", "bell· null·"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        ("right \u202eto left".encode(), "right ·to left"),
    ],
)
def test_lines_cannot_do_anything_to_a_terminal(raw, shown):
    assert readable(raw) == shown


@given(st.binary(max_size=400))
def test_no_control_character_ever_reaches_the_screen(raw):
    assert not [letter for letter in readable(raw) if ord(letter) < 32 or 127 <= ord(letter) < 160]


def test_a_filter_keeps_up_with_a_growing_file(tmp_path):
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"error 1\nfine\nerror 2\nerr")
    file = LogFile(path)
    file.update()
    narrowed = LineFilter(file, re.compile(b"error"))
    assert narrowed.update() and list(narrowed.numbers) == [0, 2]
    assert not narrowed.update()
    with path.open("ab") as more:
        more.write(b"or 3\n")
    file.update()
    assert narrowed.update() and list(narrowed.numbers) == [0, 2, 3]
    assert (narrowed.row_of(2), narrowed.row_of(1)) == (1, None)
    path.write_bytes(b"new\nerror\n")  # cut short and written anew
    file.update()
    file.update()
    narrowed.update()
    assert list(narrowed.numbers) == [1]


def test_a_filter_finds_every_line_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr("gptoss_tui.log_file.CHUNK_BYTES", 1000)
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"".join(b"line %d%s\n" % (n, b" warn" if n % 7 == 0 else b"") for n in range(2000)))
    file = LogFile(path)
    while file.update():
        pass
    narrowed = LineFilter(file, re.compile(b"warn"))
    while narrowed.update():
        pass
    assert list(narrowed.numbers) == list(range(0, 2000, 7))
