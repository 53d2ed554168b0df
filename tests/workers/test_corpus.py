"""Documents from files: order, limits, splits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SettingsError
from engine.settings import DataSettings
from engine.workers import corpus

TEXT = DataSettings(source="text")


def read(path: Path, data: DataSettings = TEXT) -> list[str]:
    return list(corpus.documents(data, path))


def test_a_directory_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/c.PY", "a/.hidden.txt", ".git/config.txt", "d.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == ["a/c.PY", "a/z.md", "b.txt"]


def test_a_file_that_is_named_may_have_any_suffix(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("hello")
    assert read(file) == ["hello"]


def test_lines_of_json(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n\n{"text": "two\\nlines", "id": 3}\n{"text": " "}\n', encoding="utf-8")
    assert read(file) == ["one", "two\nlines"]


@pytest.mark.parametrize(
    ("line", "says"),
    [("{", "line 2: not JSON"), ("[]", 'line 2: it has no "text"'), ('{"text": 1}', 'line 2: it has no "text"')],
)
def test_a_bad_line_of_json_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "x"}}\n{line}\n')
    with pytest.raises(SettingsError, match=says):
        read(file)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_bytes_that_are_not_utf8_are_named(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b'{"text": "x"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(SettingsError, match=f"{name}, line 2: byte 0xe9 is not UTF-8") as caught:
        read(file)
    assert "iconv" in caught.value.hint


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_empty_text_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(SettingsError, match="there is no text"):
        read(tmp_path)


def test_a_directory_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ends in \.txt, \.md"):
        read(tmp_path)
    with pytest.raises(SettingsError, match="there is no file or directory"):
        read(tmp_path / "none")


def test_a_long_file_becomes_several_documents(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    text = "".join(f"line {number}\n" for number in range(300_000))
    file.write_text(text)
    pieces = read(file)
    assert len(pieces) > 2
    assert "".join(pieces) == text
    assert all(piece.endswith("\n") for piece in pieces)
    assert all(len(piece) < corpus.PIECE_BYTES + 100 for piece in pieces)


def test_the_limit_is_kept(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 1000)
    limited = DataSettings(source="text", max_megabytes=0.0035)
    assert len(read(tmp_path, limited)) == 3
    assert corpus.total_bytes(limited, tmp_path) == 3500
    assert corpus.total_bytes(TEXT, tmp_path) == 10_000


def test_the_first_document_is_read_even_when_it_is_larger_than_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 1000)
    assert len(read(tmp_path, DataSettings(source="text", max_megabytes=0.0001))) == 1


def test_the_sample_needs_no_path_and_never_changes() -> None:
    sample = DataSettings(source="sample", max_megabytes=0.2)
    first = read(Path(), sample)
    assert first == read(Path(), sample)
    assert 100_000 < sum(len(text.encode()) for text in first) <= 200_000


def test_the_share_of_a_document_is_the_same_for_ever() -> None:
    """Another value would move documents from one split to the other between two versions."""
    assert corpus.share("gpt-oss") == pytest.approx(0.825748388346, abs=1e-11)


def test_shares_are_spread_evenly() -> None:
    held_out = sum(corpus.share(f"document {number}") < 0.05 for number in range(10_000))
    assert 430 < held_out < 570


@given(st.text(min_size=2), st.floats(0.1, 50))
def test_a_cut_loses_nothing(text: str, percent: float) -> None:
    train, validation = corpus.cut(text, percent)
    assert train and validation
    assert train + validation == text


def test_a_single_character_cannot_be_cut() -> None:
    with pytest.raises(SettingsError, match="single character"):
        corpus.cut("x", 5)


def test_json_text_keeps_every_letter(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "naïve — 漢字 🎈"}) + "\n")
    assert read(file) == ["naïve — 漢字 🎈"]
