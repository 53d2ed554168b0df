"""What a directory is, as a checkpoint: which kind, how far, how large, whether whole, what it is good for."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.checkpoints import hugging_face, manifest, safetensors_file, torch_dist
from engine.checkpoints.tensors import FC1
from engine.checkpoints.torch_dist import TRACKER, DistributedCheckpoint
from engine.errors import CheckpointError, EngineError, NotFoundError
from engine.models import MAX_CONFIG_BYTES
from engine.paths import expanded, open_file
from engine.proposals import as_options

KINDS: Mapping[str, str] = {
    "hugging-face": "Hugging Face checkpoint",
    "lora-adapter": "LoRA adapter (PEFT)",
    "streaming": "Megatron checkpoint, converted by gptoss",
    "bridge": "Megatron checkpoint of Megatron-Bridge",
    "bridge-lora": "LoRA adapters of Megatron-Bridge",
    "megatron-lm": "Megatron checkpoint of Megatron-LM",
    "megatron-legacy": "old Megatron-LM checkpoint, one file a rank",
}
_LAYOUT = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
}
_LORA = {"rank": "dim", "alpha": "alpha"}
_RUN_CONFIG_BYTES = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The facts about one checkpoint."""

    path: str
    kind: str
    """A key of `KINDS`."""
    iteration: int | None = None
    iterations: tuple[int, ...] = ()
    """All that lie beside it."""
    layout: Mapping[str, int] = field(default_factory=dict)
    """Parallel sizes of the ranks that saved it, where it says."""
    dtypes: tuple[str, ...] = ()
    tensors: int = 0
    parameters: int = 0
    size_bytes: int = 0
    has_optimizer: bool = False
    lora: Mapping[str, int | str] = field(default_factory=dict)
    """Of adapters: rank, alpha and base, where it says."""
    problems: tuple[str, ...] = ()
    good_for: tuple[str, ...] = ()
    """What can be done with it, in sentences."""

    @property
    def is_complete(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_complete": self.is_complete}


def inspect(path: Path) -> Inspection:
    """The facts about `path`. Raises NotFoundError when it is no checkpoint of any known kind."""
    path = expanded(path)
    if not path.is_dir():
        raise NotFoundError(f"there is no directory {path}", "give the directory of a checkpoint")
    if (path / "adapter_config.json").exists():
        return _adapter(path)
    if (path / "config.json").exists():
        return _hugging_face(path)
    if torch_dist.is_there(path):
        return _megatron(path)
    raise NotFoundError(
        f"{path} is no checkpoint: it has no config.json, {TRACKER} or {torch_dist.METADATA}",
        "give a Hugging Face directory, a directory with iter_NNNNNNN in it, or one of those",
    )


def _hugging_face(path: Path) -> Inspection:
    size = _size_bytes(path)
    try:
        checkpoint = hugging_face.read(path)
    except EngineError as error:
        return Inspection(path=str(path), kind="hugging-face", size_bytes=size, problems=(error.message,))
    names = {"BF16": "bfloat16", "F32": "float32", "U8": "mxfp4"}
    return Inspection(
        path=str(path),
        kind="hugging-face",
        dtypes=tuple(sorted({names[tensor.dtype] for tensor in checkpoint.tensors.values()})),
        tensors=len(checkpoint.tensors),
        parameters=checkpoint.model.parameters,
        size_bytes=size,
        good_for=(f"convert to Megatron: gptoss convert {path} OUT",),
    )


def _adapter(path: Path) -> Inspection:
    problems: list[str] = []
    stored: dict[str, safetensors_file.StoredTensor] = {}
    try:
        stored = safetensors_file.read_header(path / "adapter_model.safetensors")
    except CheckpointError as error:
        problems.append(error.message)
    config: dict[str, Any] = {}
    try:
        config = hugging_face.read_json(path / "adapter_config.json", MAX_CONFIG_BYTES)
    except CheckpointError as error:
        problems.append(error.message)
    named = {"rank": config.get("r"), "alpha": config.get("lora_alpha"), "base": config.get("base_model_name_or_path")}
    return Inspection(
        path=str(path),
        kind="lora-adapter",
        lora={name: value for name, value in named.items() if isinstance(value, (int, str))},
        dtypes=tuple(sorted({tensor.dtype for tensor in stored.values()})),
        tensors=len(stored),
        parameters=sum(math.prod(tensor.shape) for tensor in stored.values()),
        size_bytes=_size_bytes(path),
        problems=tuple(problems),
        good_for=("load with PEFT on top of its base model",),
    )


def _megatron(path: Path) -> Inspection:
    iterations = tuple(sorted(_number(entry) for entry in path.glob("iter_*") if _number(entry) >= 0))
    try:
        iteration = torch_dist.find_iteration(path)
    except EngineError as error:
        newest = path / f"iter_{iterations[-1]:07d}" if iterations else path
        kind = "megatron-legacy" if any(newest.glob("mp_rank_*")) else "megatron-lm"
        problem = "torch_dist is the only Megatron format that is read" if kind == "megatron-legacy" else error.message
        return Inspection(
            path=str(path), kind=kind, iterations=iterations, size_bytes=_size_bytes(path), problems=(problem,)
        )
    config = _run_config(iteration)
    facts: dict[str, Any] = {
        "path": str(iteration),
        "iteration": max(_number(iteration), 0),
        "iterations": iterations or (max(_number(iteration), 0),),
        "layout": _numbers(config, "model", _LAYOUT),
        "lora": _numbers(config, "peft", _LORA),
        "size_bytes": _size_bytes(iteration),
    }
    try:
        stored = torch_dist.read(iteration)
        problems = stored.problems()
    except CheckpointError as error:
        return Inspection(**facts, kind=_kind(iteration, None), problems=(error.message,))
    weights = stored.weights()
    kind = _kind(iteration, stored)
    return Inspection(
        **facts,
        kind=kind,
        dtypes=tuple(sorted({tensor.dtype for tensor in weights.values()})),
        tensors=len(weights),
        parameters=sum(math.prod(tensor.shape) for tensor in weights.values()),
        has_optimizer=stored.has_optimizer,
        problems=tuple(problems),
        good_for=() if problems else _uses(kind, stored),
    )


def _kind(iteration: Path, stored: DistributedCheckpoint | None) -> str:
    if stored and any(".adapter." in key for key in stored.tensors):
        return "bridge-lora"
    if (iteration.parent / manifest.NAME).exists():
        return "streaming"
    return "bridge" if (iteration / "run_config.yaml").exists() else "megatron-lm"


def _uses(kind: str, stored: DistributedCheckpoint) -> tuple[str, ...]:
    is_gpt_oss = f"{FC1}.weight" in stored.tensors
    uses = []
    if stored.has_optimizer:
        uses.append("resume the training that saved it")
    if kind != "bridge-lora":
        uses.append("start a training from its weights: " + as_options({"model.checkpoint": str(stored.path.parent)}))
    if kind == "bridge-lora":
        uses.append(f"merge, and write for PEFT: gptoss export {stored.path} OUT --base TRAINED_ON --reference HF_DIR")
    if is_gpt_oss and kind != "bridge-lora":
        uses.append(f"export to Hugging Face: gptoss export {stored.path} OUT --reference HF_DIR")
    uses.append("load with any tp, pp and ep: torch_dist checkpoints do not keep the layout")
    if kind == "megatron-lm":
        uses.append("Megatron-Bridge cannot export it: it has no run_config.yaml")
    return tuple(uses)


def _run_config(iteration: Path) -> str:
    """The text of run_config.yaml; empty where it cannot be read."""
    try:
        with open_file(iteration / "run_config.yaml") as file:
            return file.read(_RUN_CONFIG_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _numbers(config: str, part: str, names: Mapping[str, str]) -> dict[str, int]:
    """Whole numbers in one part of run_config.yaml; a few lines of a long file, so no YAML parser."""
    lines = re.search(rf"^{part}:\n((?:[ -].*\n|\n)*)", config, re.MULTILINE)
    if lines is None:
        return {}
    found = {short: re.search(rf"^  {name}: (\d+)$", lines[1], re.MULTILINE) for short, name in names.items()}
    return {short: int(match[1]) for short, match in found.items() if match}


def _number(path: Path) -> int:
    match = re.fullmatch(r"iter_(\d+)", path.name)
    return int(match[1]) if match else -1


def _size_bytes(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
