"""JSON that is nested deeper than the parser goes is damage, in files from elsewhere as in any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoints import manifest, torch_dist
from engine.data import vocabulary
from engine.data.manifest import FILE, Manifest
from engine.data.shape import Unusable, _with_tools
from engine.errors import EngineError
from engine.monitor import diagnose, labels, notify
from engine.run import reports

DEEP = "[" * 5000


def _tools(path: Path) -> None:
    with pytest.raises(Unusable):
        _with_tools([], path.read_text(encoding="utf-8"))


READERS: dict[str, Callable[[Path], object]] = {
    manifest.NAME: lambda path: manifest.read(path.parent),
    torch_dist.BACKEND: lambda path: torch_dist.read(path.parent),
    FILE: lambda path: Manifest.load(path.parent),
    labels.FILE_NAME: lambda path: labels.read(path.parent),
    "error-rank-0.json": lambda path: (diagnose.read_attempt(path.parent), reports.earliest_error(path.parent)),
    "tokenizer_config.json": lambda path: vocabulary._own_end(path),
    "tools": _tools,
    "notify.toml": lambda path: notify.load_rules(path),
}


@pytest.mark.parametrize("name", READERS)
def test_deep_nesting_is_damage(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(f"a = {DEEP}" if path.suffix == ".toml" else DEEP, encoding="utf-8")
    (tmp_path / torch_dist.METADATA).write_bytes(b"")
    try:
        READERS[name](path)
    except EngineError as error:
        assert name in error.message
