"""Following a file that another process writes."""

from __future__ import annotations

import os

import pytest

from engine.monitor import tail
from engine.monitor.tail import Tail


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_lines_are_given_once_and_only_when_complete(path):
    follower = Tail(path)
    assert follower.read() == []
    path.write_bytes(b"one\ntwo\nthr")
    assert follower.read() == [b"one", b"two"]
    assert follower.read() == []
    with path.open("ab") as file:
        file.write(b"ee\n")
    assert follower.read() == [b"three"]
    assert follower.restarts == 0


def test_windows_line_ends_are_taken_off(path):
    path.write_bytes(b"one\r\ntwo\r\n")
    assert Tail(path).read() == [b"one", b"two"]


@pytest.mark.parametrize("how", ["cut", "replaced"])
def test_a_file_that_starts_over_is_read_again_without_the_old_half_line(path, how):
    path.write_bytes(b"old line\nhalf")
    follower = Tail(path)
    follower.read()
    if how == "cut":
        os.truncate(path, 0)
        path.write_bytes(b"new\n")
    else:
        other = path.with_name("other")
        other.write_bytes(b"new\n" * 10)
        other.replace(path)
    assert set(follower.read()) == {b"new"}
    assert follower.restarts == 1


def test_a_file_that_vanishes_and_comes_back_is_followed_on(path):
    path.write_bytes(b"one\n")
    follower = Tail(path)
    follower.read()
    kept = path.rename(path.with_name("kept"))
    assert follower.read() == []
    kept.rename(path)
    with path.open("ab") as file:
        file.write(b"two\n")
    assert follower.read() == [b"two"]


def test_a_long_file_is_read_in_pieces(path, monkeypatch):
    monkeypatch.setattr(tail, "CHUNK_BYTES", 10)
    path.write_bytes(b"line\n" * 100)
    follower = Tail(path)
    assert len(follower.read()) == 2
    assert follower.is_behind
    assert len(follower.read_all()) == 98
    assert not follower.is_behind


def test_an_endless_line_does_not_fill_the_memory(path, monkeypatch):
    monkeypatch.setattr(tail, "LONGEST_LINE_BYTES", 100)
    path.write_bytes(b"x" * 5000)
    follower = Tail(path)
    assert follower.read() == []
    with path.open("ab") as file:
        file.write(b"\nnext\n")
    damaged, following = follower.read()
    assert len(damaged) == 100
    assert following == b"next"


def test_closing_gives_the_handle_back_and_loses_nothing(path):
    path.write_bytes(b"one\n")
    follower = Tail(path)
    before = len(os.listdir("/proc/self/fd"))
    follower.read()
    assert len(os.listdir("/proc/self/fd")) == before + 1
    follower.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with path.open("ab") as file:
        file.write(b"two\n")
    assert follower.read() == [b"two"]
    follower.close()
