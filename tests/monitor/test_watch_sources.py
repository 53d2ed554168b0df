"""Every place records can come from, while it grows, is replaced, or is something else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine.errors import NotFoundError, SettingsError
from engine.monitor.metrics import Record
from engine.monitor.sources import EventDirectory, JsonFiles, LogDirectory, LogFiles, Pipe, Source, follow, open_source

CAPTURED = Path(__file__).parent.parent / "captured"
LOG = CAPTURED / "logs" / "megatron-bridge-0.6.2-last-rank.log"


def all_of(source: Source) -> list[Record]:
    """Everything there is now."""
    return [record for batch in follow(source, wait=lambda seconds: False) for record in batch]


def losses(source: Source) -> list[int]:
    return [record["iteration"] for record in all_of(source) if "loss" in record]


def test_a_log():
    assert losses(open_source([str(LOG)])) == list(range(1, 61))


def test_a_log_that_grows_in_pieces(tmp_path):
    path = tmp_path / "train.log"
    data = LOG.read_bytes()
    path.write_bytes(b"")
    source = open_source([str(path)])
    found = []
    for start in range(0, len(data), 997):
        with path.open("ab") as file:
            file.write(data[start : start + 997])
        found += losses(source)
    assert found == list(range(1, 61))


def test_a_log_that_is_rotated_and_one_that_is_cut(tmp_path):
    path = tmp_path / "train.log"
    lines = [line for line in LOG.read_text().splitlines(keepends=True) if " iteration " in line and "lm loss:" in line]
    path.write_text("".join(lines[:10]))
    source = open_source([str(path)])
    assert losses(source) == list(range(1, 11))
    path.rename(tmp_path / "train.log.1")
    path.write_text("".join(lines[10:20]))
    assert losses(source) == list(range(11, 21))
    path.write_text(lines[20])  # cut: shorter than what was read
    assert losses(source) == [21]


def test_a_pipe_to_its_last_line():
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(LOG.read_bytes().rstrip(b"\n")[:60_000])
    source = open_source(["-"], stdin=reading)
    assert isinstance(source, Pipe)
    found = all_of(source)
    os.close(reading)
    assert [r["iteration"] for r in found if "loss" in r] == list(range(1, 61)) and source.is_over
    assert source.last_lines


def test_several_logs_name_theirs(tmp_path):
    for name in ("a.log", "b.log"):
        (tmp_path / name).write_bytes(LOG.read_bytes())
    found = all_of(open_source([str(tmp_path / "a.log"), str(tmp_path / "b.log")]))
    assert {record["source"] for record in found} == {"a.log", "b.log"}


def test_a_directory_of_ranks_and_a_rank_that_comes_later(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.monitor.sources.RESCAN_S", 0.0)
    (tmp_path / "rank-0.log").write_text("starting\n")
    source = open_source([str(tmp_path)])
    assert isinstance(source, LogDirectory) and losses(source) == []
    (tmp_path / "attempt_0" / "3").mkdir(parents=True)
    (tmp_path / "attempt_0" / "3" / "stdout.log").write_bytes(LOG.read_bytes())  # torchrun --log-dir
    assert losses(source) == list(range(1, 61))


def test_an_event_directory_a_single_event_file_and_a_second_one(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.monitor.sources.RESCAN_S", 0.0)
    [path] = (CAPTURED / "rehearsal").glob("events.out*")
    (tmp_path / path.name).write_bytes(path.read_bytes())
    source = open_source([str(tmp_path)])
    assert isinstance(source, EventDirectory) and losses(source) == list(range(1, 61))
    (tmp_path / path.name.replace("1795338408", "1795338499")).write_bytes(path.read_bytes())
    assert losses(source) == list(range(1, 61))
    assert losses(open_source([str(path)])) == list(range(1, 61))


def test_the_records_of_a_run_in_the_order_of_time(tmp_path):
    for name in ("events.jsonl", "metrics.jsonl"):
        (tmp_path / name).write_bytes((CAPTURED / "rehearsal" / name).read_bytes())
    source = open_source([str(tmp_path)])
    assert isinstance(source, JsonFiles)
    found = all_of(source)
    assert len(found) == 132 and [r["t"] for r in found] == sorted(r["t"] for r in found)


def test_json_lines_that_are_no_records_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = {"t": 1.0, "iteration": 1, "loss": 2.0}
    path.write_text("\n".join(["{", "[]", '{"t": "x"}', "\x00\xff", json.dumps(good), '{"t": 2, "ite']) + "\n")
    assert all_of(open_source([str(path)])) == [good]


@pytest.mark.parametrize("content", [b"", b"\x00\x01\xff" * 5000, b"a,b\n1,2\n" * 100, b"x" * 3_000_000])
def test_files_of_other_programs_show_nothing(tmp_path, content):
    path = tmp_path / "some.file"
    path.write_bytes(content)
    source = open_source([str(path)])
    assert isinstance(source, LogFiles) and all_of(source) == []


def test_what_is_not_there_or_holds_nothing_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="there is no"):
        open_source([str(tmp_path / "missing.log")])
    with pytest.raises(SettingsError, match="holds no log"):
        open_source([str(tmp_path)])
    (tmp_path / "a.log").write_text("")
    with pytest.raises(SettingsError, match="directory among files"):
        open_source([str(tmp_path / "a.log"), str(tmp_path)])
