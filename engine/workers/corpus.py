"""Text to train on, as documents in a fixed order. Knows files, no tokens."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from engine.errors import SettingsError
from engine.settings import DataSettings

SUFFIXES = (".txt", ".md", ".py", ".jsonl")
"""What is read from a directory; a file that is named itself may have any other suffix and is text."""

PIECE_BYTES = 1 << 20
"""A longer text file becomes several documents, so that no file has to fit into memory."""

_BYTES_PER_MB = 1_000_000
_NOT_SAMPLED = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}


def documents(data: DataSettings, path: Path) -> Iterator[str]:
    """The documents of `data.source`, at most `data.max_megabytes` of them; `path` is data.path resolved.

    Raises SettingsError for input that is missing, empty or not UTF-8.
    """
    sample = data.source == "sample"
    files = _sample_files() if sample else text_files(path)
    limit = data.max_megabytes * _BYTES_PER_MB
    read = 0
    for file in files:
        for text in _file_documents(file, skip_unreadable=sample):
            size = len(text.encode())
            if limit and read and read + size > limit:
                return
            read += size
            yield text
    if not read:
        raise SettingsError(f"data.path: there is no text in {path}", "give a file or directory with text in it")


def total_bytes(data: DataSettings, path: Path) -> int:
    """About how many bytes `documents` will read: what the files hold, or the limit."""
    files = _sample_files() if data.source == "sample" else text_files(path)
    held = sum(file.stat().st_size for file in files)
    return min(held, int(data.max_megabytes * _BYTES_PER_MB)) if data.max_megabytes else held


def text_files(path: Path) -> list[Path]:
    """The files that `path` stands for, in a fixed order. Raises SettingsError."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SettingsError(f"data.path: there is no file or directory {path}", "give the path of your text")
    found = _walk(path, SUFFIXES, skip=set())
    if not found:
        raise SettingsError(
            f"data.path: no file in {path} ends in {', '.join(SUFFIXES)}",
            "give a directory with such files, or one file",
        )
    return found


def share(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone: a document stays in its split when others change."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


def cut(text: str, validation_percent: float) -> tuple[str, str]:
    """One document as a training and a validation part, cut at a line end where there is one.

    Raises SettingsError when there is nothing to cut.
    """
    if len(text) < 2:
        raise SettingsError("data.path: the text is a single character", "give more text")
    middle = min(max(int(len(text) * (1 - validation_percent / 100)), 1), len(text) - 1)
    line_end = text.rfind("\n", 0, middle) + 1
    return text[: line_end or middle], text[line_end or middle :]


def _sample_files() -> list[Path]:
    return _walk(Path(sysconfig.get_paths()["stdlib"]), (".py",), skip=_NOT_SAMPLED)


def _walk(root: Path, suffixes: tuple[str, ...], skip: set[str]) -> list[Path]:
    found: list[Path] = []
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skip and not name.startswith("."))
        found += [Path(directory, n) for n in names if n.lower().endswith(suffixes) and not n.startswith(".")]
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _file_documents(file: Path, skip_unreadable: bool) -> Iterator[str]:
    pieces = _json_lines(file) if file.suffix.lower() == ".jsonl" else _pieces(file)
    try:
        yield from (text for text in pieces if text.strip())
    except OSError as error:
        raise SettingsError(f"data.path: {file} cannot be read: {error.strerror}", "check its permissions") from error
    except SettingsError:
        # The standard library holds files in other encodings on purpose.
        if not skip_unreadable:
            raise


def _pieces(file: Path) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for line in _lines(file):
        held.append(line)
        size += len(line)
        if size >= PIECE_BYTES:
            yield "".join(held)
            held, size = [], 0
    yield "".join(held)


def _json_lines(file: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise SettingsError(f"{file}, line {number}: not JSON ({error})", "give one JSON object a line") from None
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise SettingsError(
                f'{file}, line {number}: it has no "text"', 'give lines such as {"text": "Once upon a time"}'
            )
        yield text


def _lines(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise SettingsError(
                    f"{file}, line {number}: byte 0x{line[error.start]:02x} is not UTF-8",
                    f"convert it: iconv -f WINDOWS-1252 -t UTF-8 {file.name} > new.txt",
                ) from None
