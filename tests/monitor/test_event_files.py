"""TensorBoard event files against what TensorBoard itself writes."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from engine.monitor.tensorboard import EventFile, find_event_files, masked_crc

CAPTURED = Path(__file__).parent.parent / "captured" / "rehearsal"


@pytest.fixture
def captured() -> Path:
    [path] = find_event_files(CAPTURED)
    return path


def test_a_rehearsal_has_the_same_losses_as_its_metrics(captured):
    losses = {r["iteration"]: r["loss"] for r in EventFile(captured).read() if "loss" in r}
    assert sorted(losses) == list(range(1, 61))
    text = (CAPTURED / "metrics.jsonl").read_text()
    assert f'"loss": {losses[59]}' in text
    assert len({round(r["validation_loss"], 5) for r in EventFile(captured).read() if "validation_loss" in r}) == 3


def test_a_file_that_grows_byte_by_byte_gives_the_same(captured, tmp_path):
    data = captured.read_bytes()[:9000]
    whole, growing = tmp_path / "events.out.tfevents.1", tmp_path / "events.out.tfevents.2"
    whole.write_bytes(data)
    growing.write_bytes(b"")
    file = EventFile(growing)
    found = []
    for end in range(0, len(data), 37):
        with growing.open("ab") as target:
            target.write(data[end : end + 37])
        found += file.read()
    expected = EventFile(whole).read()
    assert [(r["iteration"], r.get("loss")) for r in found if "loss" in r] == [
        (r["iteration"], r["loss"]) for r in expected if "loss" in r
    ]
    assert not file.is_damaged


@pytest.mark.parametrize("at", [0, 5, 9])
def test_damage_ends_the_reading_without_an_error(captured, tmp_path, at):
    data = bytearray(captured.read_bytes())
    data[at] ^= 0xFF
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(bytes(data))
    file = EventFile(path)
    assert file.read() == [] and file.is_damaged and not file.is_behind


def test_a_damaged_event_between_whole_ones_is_left_out(captured, tmp_path):
    data = bytearray(captured.read_bytes())
    length = int.from_bytes(data[:8], "little")
    second = 12 + length + 4
    data[second + 12 : second + 14] = b"\xff\xff"  # in the message, not in the frame
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(bytes(data))
    assert len([r for r in EventFile(path).read() if "loss" in r]) >= 59


def test_the_checksum_is_the_published_one():
    """CRC-32C of 32 zero bytes is 8A9136AA (RFC 3720, B.4); masked as TFRecord does."""
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_files_come_in_the_order_in_which_they_were_begun(captured, tmp_path):
    for stamp in (300, 100, 200):
        shutil.copy(captured, tmp_path / f"events.out.tfevents.{stamp}.host.1.0")
    assert [path.name.split(".")[3] for path in find_event_files(tmp_path)] == ["100", "200", "300"]


def test_the_real_writer(tmp_path):
    """Both forms of a scalar, as TensorBoard's own code writes them."""
    writer_module = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2

    writer = writer_module.EventFileWriter(str(tmp_path))
    values = [("lm loss", 11.5, 1), ("grad-norm", 2.25, 1), ("lm loss", math.nan, 2), ("lm loss vs samples", 11.5, 256)]
    for tag, value, step in values:
        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(event_pb2.Event(wall_time=1000.5, step=step, summary=summary))
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[0.125])
    summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag="learning-rate", tensor=tensor)])
    writer.add_event(event_pb2.Event(wall_time=1001.0, step=3, summary=summary))
    writer.close()
    [path] = find_event_files(tmp_path)
    assert EventFile(path).read() == [
        {"t": 1000.5, "iteration": 1, "loss": 11.5, "grad_norm": 2.25},
        {"t": 1000.5, "iteration": 2, "not_finite": "loss"},
        {"t": 1001.0, "iteration": 3, "learning_rate": 0.125},
    ]
