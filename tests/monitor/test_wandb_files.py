"""W&B offline files: one that wandb wrote, and damaged, growing and long ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from engine.monitor.wandb_file import BLOCK_BYTES, WandbFile, find_wandb_files
from gptoss_tui.__main__ import main

CAPTURED = Path(__file__).parent.parent / "captured" / "wandb" / "run-capture.wandb"


def read_all(path: Path) -> list[dict[str, object]]:
    file = WandbFile(path)
    return file.read()


def test_what_wandb_wrote():
    records = read_all(CAPTURED)
    assert [record["iteration"] for record in records] == list(range(1, 21))
    assert records[0]["loss"] == pytest.approx(5.7074, abs=1e-4) and records[0]["grad_norm"] == 1.01
    assert records[6]["not_finite"] == "loss" and "loss" not in records[6]
    assert {record["tflops_per_gpu"] for record in records} == {0.5}


def test_a_growing_file_gives_each_record_once(tmp_path):
    data, path = CAPTURED.read_bytes(), tmp_path / "run-x.wandb"
    path.write_bytes(b"")
    file, found = WandbFile(path), []
    for start in range(0, len(data), 97):
        with path.open("ab") as more:
            more.write(data[start : start + 97])
        found += file.read()
    assert found == read_all(CAPTURED)


@pytest.mark.parametrize("place", [0, 3, 9, 200, 5000])
def test_after_damage_nothing_is_made_up(tmp_path, place):
    data = bytearray(CAPTURED.read_bytes())
    data[place] ^= 0xFF
    path = tmp_path / "run-x.wandb"
    path.write_bytes(bytes(data))
    whole = read_all(CAPTURED)
    found = read_all(path)
    assert found == whole[: len(found)] and len(found) < len(whole)


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def message(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def item(name: str, value: str) -> bytes:
    return message(1, message(2, name.encode()) + message(16, value.encode()))


def log_of(records: list[bytes]) -> bytes:
    """Records in blocks, as LevelDB's writer cuts them."""
    out = b":W&B\xe1\xbe\x00"
    for record in records:
        is_first = True
        while record or is_first:
            left = BLOCK_BYTES - len(out) % BLOCK_BYTES
            if left < 7:
                out += b"\0" * left
                continue
            piece, record = record[: left - 7], record[left - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[is_first, not record]
            body = bytes([kind]) + piece
            out += struct.pack("<IH", zlib.crc32(body), len(piece)) + body
            is_first = False
    return out


def test_records_longer_than_a_block_and_paddings(tmp_path):
    path = tmp_path / "run-x.wandb"
    records = []
    for step in range(1, 200):
        note = '"' + "x" * (70_000 if step % 50 == 0 else step * 37) + '"'
        items = (
            item("_step", str(step)) + item("_timestamp", "1.5") + item("lm loss", str(step / 10)) + item("note", note)
        )
        records.append(message(2, items))
    path.write_bytes(log_of(records))
    assert [one["loss"] for one in read_all(path)] == [step / 10 for step in range(1, 200)]


@pytest.mark.parametrize(
    "values",
    [[], [("_step", "1")], [("_step", "x"), ("_timestamp", "1")], [("_step", "null")], [("_step", "[" * 5000)]],
)
def test_a_history_without_step_or_time_is_none(tmp_path, values):
    path = tmp_path / "run-x.wandb"
    path.write_bytes(log_of([message(2, b"".join(item(*pair) for pair in values)), b"\xff\xff", b""]))
    assert read_all(path) == []


def test_the_directory_that_wandb_makes_is_found(tmp_path, capsys):
    place = tmp_path / "wandb" / "offline-run-20261122_124030-x"
    place.mkdir(parents=True)
    (place / "run-x.wandb").write_bytes(CAPTURED.read_bytes())
    (place / "debug.log").write_text("not the one\n")
    (tmp_path / "wandb" / "latest-run").symlink_to(place.name)
    for directory in (tmp_path, tmp_path / "wandb", place):
        assert [path.name for path in find_wandb_files(directory)] == ["run-x.wandb"]
        assert main(["watch", str(directory), "--no-follow"]) == 0
        assert "iterations  1 to 20" in capsys.readouterr().out
