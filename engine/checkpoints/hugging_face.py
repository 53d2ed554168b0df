"""A Hugging Face checkpoint directory: found, and checked against its own config before anything is read."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoints import tensors, torch_dist
from engine.checkpoints.safetensors_file import StoredTensor, read_header
from engine.errors import CheckpointError, NotFoundError
from engine.models import MAX_CONFIG_BYTES, Model, read_config
from engine.paths import expanded, file_text

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ADAPTER_FOLDER = "adapter"
"""In an export of merged weights: the adapters alone, as PEFT reads them."""
MAX_INDEX_BYTES = 64_000_000
WEIGHT_TYPES = ("BF16", "F32")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFaceCheckpoint:
    """A directory whose tensors are all there, of the right shape and of a known type."""

    path: Path
    model: Model
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def is_mxfp4(self) -> bool:
        """True when the experts are 4-bit blocks with scales."""
        return tensors.layer_name(0, f"{tensors.DOWN}_blocks") in self.tensors

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    def is_transposed(self, name: str) -> bool:
        """True when the experts' weight `name` is stored [expert, out, in], as Megatron has it.

        Square weights tell nothing: they are taken for [expert, in, out], which is what
        transformers saves and what Megatron-Bridge assumes (gpt_oss_bridge.py:150, 0.6.2).
        """
        shape = self.tensors[name].shape
        return shape != tensors.hugging_face_layer(self.model)[name.split(".", 3)[3]]


def find(reference: str) -> Path:
    """The directory of a path, or of a `owner/name` in the Hugging Face cache. Raises NotFoundError."""
    path = expanded(reference)
    if path.is_dir():
        return path
    if not _REPOSITORY.fullmatch(reference):
        raise NotFoundError(f"there is no directory {path}", "give the directory of a Hugging Face checkpoint")
    folder = _hub_cache() / f"models--{reference.replace('/', '--')}"
    try:
        revision = file_text(folder / "refs" / "main").strip()
    except (OSError, UnicodeDecodeError):
        raise NotFoundError(
            f"{reference} is neither a directory nor in the Hugging Face cache {folder.parent}",
            f"download it first: hf download {reference}",
        ) from None
    return folder / "snapshots" / revision


def read(directory: Path) -> HuggingFaceCheckpoint:
    """The checkpoint in `directory`. Raises CheckpointError or SettingsError naming what is wrong with it."""
    if not (directory / "config.json").exists():
        if torch_dist.is_there(directory):
            raise CheckpointError(
                f"{directory} is a Megatron checkpoint and not a Hugging Face one",
                f"look at it: gptoss checkpoint inspect {directory}, or export it: gptoss export {directory} OUT",
            )
        raise CheckpointError(f"there is no {directory / 'config.json'}", "give a directory with a Hugging Face model")
    model = read_config(directory)
    config = read_json(directory / "config.json", MAX_CONFIG_BYTES)
    if config.get("model_type", "gpt_oss") != "gpt_oss":
        raise CheckpointError(f"{directory} holds a {config['model_type']!r} model", "give a gpt-oss checkpoint")
    found = _read_tensors(directory)
    _check(found, model, directory)
    return HuggingFaceCheckpoint(path=directory, model=model, config=config, tensors=found)


def _hub_cache() -> Path:
    if chosen := os.environ.get("HF_HUB_CACHE"):
        return expanded(chosen)
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return expanded(home) / "hub"


def _read_tensors(directory: Path) -> dict[str, StoredTensor]:
    index = directory / INDEX
    if not index.exists():
        if not (directory / SINGLE).exists():
            raise CheckpointError(
                f"{directory} has neither {INDEX} nor {SINGLE}", "give a directory with safetensors weights"
            )
        return read_header(directory / SINGLE)
    placed = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise CheckpointError(f"{index} has no weight_map", "download the index again")
    shards = sorted(set(placed.values()))
    if outside := [name for name in shards if Path(name).name != name]:
        raise CheckpointError(f"{index} names a file outside its directory: {outside[0]}", "download the index again")
    if missing := [name for name in shards if not (directory / name).is_file()]:
        raise CheckpointError(f"{directory} lacks {_some(missing)}", "download the missing shards")
    headers = {name: read_header(directory / name) for name in shards}
    if lies := [f"{tensor} is not in {file}" for tensor, file in placed.items() if tensor not in headers[file]]:
        raise CheckpointError(f"{index} and the shards disagree: {_some(lies)}", "download the index and shards again")
    return {tensor: headers[file][tensor] for tensor, file in placed.items()}


def _check(found: Mapping[str, StoredTensor], model: Model, directory: Path) -> None:
    """Compare with what config.json promises: every tensor, its shape, its type."""
    expected = _expected(found, model)
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(
            f"{directory} lacks {_some(missing)}",
            "config.json is of another model, or a shard is missing",
        )
    if surplus := sorted(found.keys() - expected.keys()):
        raise CheckpointError(
            f"{directory} has tensors unknown to gpt-oss: {_some(surplus)}", "give a gpt-oss checkpoint"
        )
    wrong = [
        f"{name} is {list(found[name].shape)} and not {list(shapes[0])}"
        for name, shapes in expected.items()
        if found[name].shape not in shapes
    ]
    if wrong:
        raise CheckpointError(f"{directory}: {_some(wrong)}", "config.json and the weights do not belong together")
    types = [
        f"{name} is {tensor.dtype}"
        for name, tensor in found.items()
        if (tensor.dtype != "U8" if name.endswith(("_blocks", "_scales")) else tensor.dtype not in WEIGHT_TYPES)
    ]
    if types:
        raise CheckpointError(f"{directory}: {_some(types)}", "it must be BF16, F32 or MXFP4 (U8 blocks and scales)")


def _expected(found: Mapping[str, StoredTensor], model: Model) -> dict[str, tuple[tensors.Shape, ...]]:
    """Each tensor with the shapes it may have."""
    expected: dict[str, tuple[tensors.Shape, ...]] = {}
    for name, shape in tensors.hugging_face(model).items():
        if not tensors.is_expert_weight(name):
            expected[name] = (shape,)
        elif f"{name}_blocks" in found:
            expected |= {part: (one,) for part, one in tensors.mxfp4(name, model).items()}
        else:
            expected[name] = (shape, (shape[0], shape[2], shape[1]))
    return expected


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError."""
    try:
        if path.stat().st_size > limit:
            raise CheckpointError(f"{path} is larger than {limit:,} bytes", "download it again")
        value = json.loads(file_text(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}", "download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no JSON object", "download it again")
    return value


def _some(items: list[str], count: int = 3) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more
