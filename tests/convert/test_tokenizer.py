"""A tokenizer that is not the model's is named before anything is converted, and at the export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engine.errors import CheckpointError
from engine.workers.stream.convert import convert
from engine.workers.stream.export import Extras, export
from tests.convert.conftest import MakeSource


def tokenizer(directory: Path, size: int, added: int | None = None) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    content = {"model": {"type": "BPE", "vocab": {f"t{i}": i for i in range(size)}, "merges": []},
               "added_tokens": [] if added is None else [{"id": added, "content": "<|x|>"}]}  # fmt: skip
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


@pytest.fixture
def model(source: MakeSource, tmp_path: Path) -> Path:
    shutil.copytree(source("bf16", 64), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("size", "added", "config", "says"),
    [
        (513, None, {}, "knows token ids up to 512 and the model has rows for 512"),
        (500, 600, {}, "knows token ids up to 600"),
        (400, None, {"eos_token_id": 410}, r"eos_token_id = 410, which .* does not know \(its ids end at 399\)"),
        (400, None, {"eos_token_id": [7, 450]}, "eos_token_id = 450"),
        (400, None, {"pad_token_id": 511}, "pad_token_id = 511"),
    ],
)
def test_before_a_conversion(
    model: Path, tmp_path: Path, size: int, added: int | None, config: dict[str, object], says: str
) -> None:
    tokenizer(model, size, added)
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(CheckpointError, match=says):
        convert(model, tmp_path / "m", "bf16")
    assert not list(tmp_path.glob("*m*"))[1:]  # the model alone


def test_a_file_that_is_none_is_named(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError, match="is no tokenizer"):
        convert(model, tmp_path / "m", "bf16")


def test_at_the_export(model: Path, tmp_path: Path) -> None:
    tokenizer(model, 512)
    convert(model, tmp_path / "m", "bf16")
    with pytest.raises(CheckpointError, match="up to 512"):
        export(tmp_path / "m", tmp_path / "hf", model, "bf16", extras=Extras(tokenizer=tokenizer(tmp_path / "t", 513)))
    assert not (tmp_path / "hf").exists()
    # The ids that config.json names are wrong with it, the rows are enough: that is told and no reason to refuse.
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 500}))
    small = tokenizer(tmp_path / "t", 400)
    made = export(tmp_path / "m", tmp_path / "hf", model, "bf16", extras=Extras(tokenizer=small))
    assert len(made["warnings"]) == 1 and "eos_token_id = 500" in made["warnings"][0]
    assert (tmp_path / "hf" / "tokenizer.json").read_text() == (small / "tokenizer.json").read_text()
