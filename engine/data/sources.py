"""The files that a path, a pattern or a dataset directory stands for, and what kind each is.

Looks at names and first bytes only; reading records is `records`' work.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sysconfig
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engine.errors import NotFoundError, SettingsError
from engine.paths import expanded
from engine.settings import HUB_PREFIX

TEXT, JSON_LINES, PARQUET, ARROW = "text", "jsonl", "parquet", "arrow"
GZIP, ZSTD = "gz", "zst"

_FORMATS = {
    ".txt": TEXT, ".md": TEXT, ".rst": TEXT, ".py": TEXT,
    ".jsonl": JSON_LINES, ".ndjson": JSON_LINES, ".json": JSON_LINES,
    ".parquet": PARQUET, ".pq": PARQUET,
    ".arrow": ARROW,
}  # fmt: skip
_COMPRESSIONS = {".gz": GZIP, ".zst": ZSTD, ".zstd": ZSTD}
_HEAD_BYTES = 1 << 16
_NOT_SAMPLED = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One input file."""

    path: str
    format: str
    """`text`, `jsonl`, `parquet` or `arrow`."""
    compression: str = ""
    """`gz`, `zst` or nothing."""
    size_bytes: int = 0
    modified_ns: int = 0

    @property
    def is_lines(self) -> bool:
        """True for formats that are cut at line ends."""
        return self.format in (TEXT, JSON_LINES)


def find(reference: str, split: str = "train") -> list[SourceFile]:
    """Every file that `reference` (file, directory, pattern, dataset directory, hf:name) stands for, in order.

    Raises NotFoundError when there is none and SettingsError when one cannot be training data.
    """
    if reference.startswith(HUB_PREFIX):
        return _of_split(find(str(_fetch(reference.removeprefix(HUB_PREFIX))), split), split)
    path = expanded(reference)
    if path.is_file():
        return [_describe(path, named=True)]
    if path.is_dir():
        return _in_dataset(path, split) or _in_directory(path)
    if glob.has_magic(reference):
        names = sorted(glob.glob(os.path.expanduser(reference), recursive=True))
        files = [_describe(Path(name), named=True) for name in names if os.path.isfile(name)]
        if files:
            return files
        raise NotFoundError(f"no file matches {reference!r}", "try the pattern with: ls -l")
    raise NotFoundError(f"there is no file or directory {reference!r}", _missing_hint(reference))


def sample(most: int | None = None) -> list[SourceFile]:
    """The first `most` sources of the running Python's standard library that are UTF-8: text that is always there."""
    root = Path(sysconfig.get_paths()["stdlib"])
    # A few files hold other encodings on purpose, to test decoders.
    found = (file for file in _walk(root, {".py"}, _NOT_SAMPLED) if file.size_bytes and _is_utf8(file.path))
    return list(islice(found, most))


def total_bytes(files: list[SourceFile]) -> int:
    """What the files hold on disk."""
    return sum(file.size_bytes for file in files)


def _of_split(files: list[SourceFile], split: str) -> list[SourceFile]:
    """Of a repository's files those of one split, by the hub's own rule: the split is a word of the name or folder."""
    word = re.compile(rf"(?<![a-z0-9]){re.escape(split)}(?![a-z0-9])", re.IGNORECASE)
    return [file for file in files if word.search("/".join(Path(file.path).parts[-2:]))] or files


def _in_directory(path: Path) -> list[SourceFile]:
    files = [file for file in _walk(path, set(_FORMATS), set()) if file.size_bytes]
    if not files:
        raise SettingsError(
            f"no file with text in {path} ends in {', '.join(_FORMATS)} (or with .gz, .zst behind it)",
            "name one file, or give a pattern such as 'DIR/*.log'",
        )
    for file in files:
        _refuse_foreign(Path(file.path), file)
    return files


def _in_dataset(path: Path, split: str) -> list[SourceFile]:
    """The arrow files of a directory that `datasets` saved, or nothing for another directory."""
    if (path / "dataset_dict.json").is_file():
        splits = _read_json(path / "dataset_dict.json").get("splits", [])
        if split not in splits:
            raise SettingsError(f"{path} has no split {split!r}", f"choose one of: {', '.join(splits) or 'none'}")
        path = path / split
    if not (path / "state.json").is_file() or not (path / "dataset_info.json").is_file():
        return []
    state = _read_json(path / "state.json")
    if state.get("_indices_data_files"):
        raise SettingsError(
            f"{path} is a selection or a shuffle of another dataset",
            "save it whole first: dataset.flatten_indices().save_to_disk(DIR)",
        )
    files = [path / str(item["filename"]) for item in state.get("_data_files", [])]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise SettingsError(f"{path} is incomplete: {missing[0] if missing else 'it names no data files'}",
                            "copy the whole directory again")  # fmt: skip
    return [_describe(file, named=True) for file in files]


def _walk(root: Path, suffixes: set[str], skip: set[str]) -> list[SourceFile]:
    found: list[Path] = []
    for directory, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skip and not name.startswith("."))
        found += [Path(directory, n) for n in names if _inner_suffix(n) in suffixes and not n.startswith(".")]
    found.sort(key=lambda file: file.relative_to(root).as_posix())
    return [_describe(file, named=False) for file in found if file.is_file()]


def _describe(path: Path, named: bool) -> SourceFile:
    try:
        facts = path.stat()
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    file = SourceFile(
        path=str(path.absolute()),
        # A file that is named may have any ending, and is text then.
        format=_FORMATS.get(_inner_suffix(path.name), TEXT),
        compression=_COMPRESSIONS.get(path.suffix.lower(), ""),
        size_bytes=facts.st_size,
        modified_ns=facts.st_mtime_ns,
    )
    if named:
        if not file.size_bytes:
            raise SettingsError(f"{path} is empty", "give a file with text in it")
        _refuse_foreign(path, file)
    return file


def _refuse_foreign(path: Path, file: SourceFile) -> None:
    """Raise SettingsError for what looks like no text: better now than after an hour."""
    if file.compression or not file.is_lines:
        return
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise SettingsError(f"{path} is UTF-16", f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > new.txt")
    if b"\x00" in head:
        raise SettingsError(f"{path} is a binary file", "give text: .txt, .jsonl, Parquet or a dataset directory")
    if file.format == JSON_LINES and head.lstrip().startswith(b"["):
        raise SettingsError(f"{path} is one JSON list, not one record a line",
                            f"convert it: jq -c '.[]' {path.name} > {path.stem}.jsonl")  # fmt: skip


def _inner_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if suffix in _COMPRESSIONS else suffix


def _is_utf8(path: str) -> bool:
    try:
        Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", "save the dataset again") from error
    return value if isinstance(value, dict) else {}


def _fetch(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise SettingsError(f"{name!r} is on the hub, and huggingface_hub is not installed",
                            "install it with: uv pip install huggingface_hub") from None  # fmt: skip
    endings = [f"*{suffix}" for suffix in _FORMATS] + [f"*{suffix}" for suffix in _COMPRESSIONS]
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=endings))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise SettingsError(
            f"the dataset {name!r} could not be fetched from the hub: {first}",
            "on a machine without network, fetch it elsewhere and give the directory",
        ) from error


def _missing_hint(reference: str) -> str:
    if reference.count("/") == 1 and not reference.startswith((".", "/", "~")):
        return f"for a dataset on the Hugging Face hub write hf:{reference}"
    return "give the path of your text"
