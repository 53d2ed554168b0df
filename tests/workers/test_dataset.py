"""Checking a .bin/.idx pair that a person brings."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from engine.errors import SettingsError
from engine.workers.dataset import check_prefix

numpy = pytest.importorskip("numpy")


def write_pair(prefix: Path, lengths: list[int], code: int = 4, dtype: str = "int32", highest: int = 9) -> None:
    """A pair as Megatron writes it: one sequence for each document."""
    count = len(lengths)
    ends = numpy.cumsum([0, *lengths])[:-1] * numpy.dtype(dtype).itemsize
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, count, count + 1)
    index += numpy.array(lengths, "int32").tobytes()
    index += ends.astype("int64").tobytes()
    index += numpy.arange(count + 1, dtype="int64").tobytes()
    Path(f"{prefix}.idx").write_bytes(index)
    ids = numpy.arange(sum(lengths), dtype=dtype) % (highest + 1)
    Path(f"{prefix}.bin").write_bytes(ids.tobytes())


@pytest.mark.parametrize(("code", "dtype"), [(4, "int32"), (8, "uint16"), (5, "int64")])
def test_a_good_pair(tmp_path: Path, code: int, dtype: str) -> None:
    write_pair(tmp_path / "good", [5, 7, 3, 5], code, dtype)
    assert check_prefix(tmp_path / "good", 10, validation_percent=25) == (4, 15, 5)


@pytest.mark.parametrize(
    ("documents", "percent", "train"),
    # Python and numpy round halves to even, as Megatron does.
    [(10, 10, 9), (10, 20, 8), (3, 50, 2), (5, 50, 2), (4, 20, 3)],
)
def test_the_split_is_megatrons(tmp_path: Path, documents: int, percent: float, train: int) -> None:
    write_pair(tmp_path / "pair", [1] * documents)
    assert check_prefix(tmp_path / "pair", 10, percent) == (documents, train, documents - train)


@pytest.mark.parametrize(("documents", "percent"), [(10, 5), (1, 50), (3, 10)])
def test_an_empty_side_is_refused(tmp_path: Path, documents: int, percent: float) -> None:
    write_pair(tmp_path / "pair", [4] * documents)
    with pytest.raises(SettingsError, match="leaves one side without any"):
        check_prefix(tmp_path / "pair", 10, percent)


def test_a_foreign_vocabulary_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path / "pair", [20, 20], highest=12)
    with pytest.raises(SettingsError, match="the token id 12; the model knows 0 to 11"):
        check_prefix(tmp_path / "pair", 12, 50)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path / "pair", [4, 4])
    (tmp_path / "pair.bin").unlink()
    with pytest.raises(SettingsError, match=r"there is no .*pair\.bin"):
        check_prefix(tmp_path / "pair", 10, 50)


@pytest.mark.parametrize(
    ("ending", "keep", "says"),
    [("idx", 50, "is cut off"), ("idx", 20, "is not a Megatron index"), ("bin", 30, "its index says")],
)
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, ending: str, keep: int, says: str) -> None:
    write_pair(tmp_path / "pair", [10, 10])
    file = tmp_path / f"pair.{ending}"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SettingsError, match=says):
        check_prefix(tmp_path / "pair", 10, 50)


@pytest.mark.parametrize(("place", "value"), [(0, b"X"), (9, b"\x07"), (17, b"\x06")])
def test_a_foreign_header_is_refused(tmp_path: Path, place: int, value: bytes) -> None:
    write_pair(tmp_path / "pair", [10, 10])
    file = tmp_path / "pair.idx"
    content = bytearray(file.read_bytes())
    content[place : place + 1] = value
    file.write_bytes(content)
    with pytest.raises(SettingsError):
        check_prefix(tmp_path / "pair", 10, 50)
