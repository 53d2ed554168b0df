"""Megatron -> Hugging Face: safetensors shards that transformers loads, written from start to end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from engine.checkpoints import tensors, torch_dist
from engine.checkpoints.hugging_face import INDEX, SINGLE
from engine.checkpoints.safetensors_file import make_header
from engine.checkpoints.tensors import Shape
from engine.checkpoints.torch_dist import DistributedCheckpoint
from engine.errors import CheckpointError
from engine.models import Model, read_config
from engine.paths import write_atomic
from engine.workers.stream import bridge_files, manifest, model_card, resources, scratch
from engine.workers.stream.files import OnProgress, OutputFile, Unit, making, publish, write_all
from engine.workers.stream.reading import MegatronReader
from engine.workers.stream.to_hugging_face import PIECE_BYTES, FromMegatron, Source, parts
from engine.workers.stream.values import OF_TORCH, TORCH_DTYPES

MAX_SHARD_BYTES, MIN_SHARD_BYTES = 5_000_000_000, 250_000_000
_SHARDS_PER_THREAD = 3
_SAFETENSORS_TYPE = {"bf16": "BF16", "fp32": "F32"}
_CONFIG_DTYPE = {"bf16": "bfloat16", "fp32": "float32"}


def export(
    source: Path,
    out: Path,
    reference: Path,
    dtype: str,
    *,
    on_progress: OnProgress | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """Make the Hugging Face checkpoint `out` from one iteration of the Megatron checkpoint `source`.

    `reference` is the Hugging Face directory that it came from: its config.json and tokenizer are
    taken, its weights are not looked at. `dtype` is bf16 or fp32. `out` appears when it is complete.
    Raises CheckpointError naming every tensor that is missing; else as `convert`.
    """
    started = time.monotonic()
    torch.set_num_threads(1)
    scratch.return_large_blocks()
    model = read_config(reference)
    iteration = torch_dist.find_iteration(source)
    checkpoint = torch_dist.read(iteration)
    require_whole(checkpoint, model)
    threads = resources.threads_for(_thread_bytes(checkpoint, model, dtype), threads)
    shards = _shards(tensors.hugging_face(model), TORCH_DTYPES[dtype].itemsize, threads)
    identity = {
        "to": "hugging face",
        "dtype": dtype,
        "source": _fingerprint(iteration),
        "shards": len(shards),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with making(out, identity) as partial, MegatronReader(checkpoint) as reader:
        there = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
        resources.require_disk(partial, model.parameters * TORCH_DTYPES[dtype].itemsize, there)
        units = [
            Unit(
                name=name,
                size_bytes=_size(shapes, dtype),
                write=_writer(FromMegatron(reader, model), shapes, dtype),
            )
            for name, shapes in shards.items()
        ]
        written = write_all(units, partial, partial / "journal.jsonl", threads, on_progress)
        small = _small_files(partial, shards, reference, iteration, dtype)
        facts = {
            "kind": "hugging face",
            "from": str(iteration),
            "dtype": dtype,
            "parameters": model.parameters,
        }
        manifest.write(partial, facts, partial, written, small)
        publish(partial, out)
    return {
        "path": str(out),
        "tensors": sum(len(shapes) for shapes in shards.values()),
        "bytes": sum(one.size_bytes for one in written),
        "parameters": model.parameters,
        "threads": threads,
        "seconds": round(time.monotonic() - started, 2),
    }


def require_whole(checkpoint: DistributedCheckpoint, model: Model) -> None:
    """Raise CheckpointError unless every weight of `model` is there, and nothing else."""
    if adapters := [key for key in checkpoint.weights() if ".adapter." in key or "lora" in key.lower()]:
        raise CheckpointError(
            f"{checkpoint.path} holds LoRA adapters ({adapters[0]}, …)",
            "merge them with Megatron-Bridge first; the adapters of single experts cannot be exported without loss",
        )
    if problems := checkpoint.problems():
        raise CheckpointError(f"{checkpoint.path}: {'; '.join(problems[:3])}", "use an older checkpoint")
    expected, found = tensors.megatron(model), checkpoint.weights()
    wrong = [f"{key} is missing" for key in expected if key not in found]
    wrong += [f"{key} belongs to no gpt-oss" for key in found if key not in expected]
    wrong += [
        f"{key} is {list(found[key].shape)} and not {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key].shape != shape
    ]
    wrong += [f"{key} is {found[key].dtype}" for key in expected if key in found and found[key].dtype not in OF_TORCH]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{checkpoint.path}: {'; '.join(wrong[:3])}{more}",
            "config.json and checkpoint do not belong together, or another Megatron wrote it",
        )


def _thread_bytes(checkpoint: DistributedCheckpoint, model: Model, dtype: str) -> int:
    """The most that one thread holds: an expert as it was read, put together, and as it is written."""
    item = TORCH_DTYPES[dtype].itemsize
    stored = max(torch_dist.ITEM_BYTES[tensor.dtype] for tensor in checkpoint.weights().values())
    return max(2 * model.ffn * model.hidden, PIECE_BYTES // item) * (2 * item + stored)


def _shards(shapes: Mapping[str, Shape], item_bytes: int, threads: int) -> dict[str, dict[str, Shape]]:
    """The tensors of each file, in order: enough files for every thread, none needlessly small."""
    total = sum(math.prod(shape) for shape in shapes.values()) * item_bytes
    limit = min(MAX_SHARD_BYTES, max(MIN_SHARD_BYTES, total // (threads * _SHARDS_PER_THREAD)))
    shards: list[dict[str, Shape]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * item_bytes
        if shards[-1] and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _writer(source: Source, shapes: dict[str, Shape], dtype: str) -> Callable[[OutputFile], None]:
    def write(file: OutputFile) -> None:
        head, starts = make_header(shapes, _SAFETENSORS_TYPE[dtype])
        file.put(head)
        for name, shape in shapes.items():
            if file.position != starts[name]:
                raise AssertionError(f"{name} would begin at {file.position} and not at {starts[name]}")
            for part in parts(name, shape, TORCH_DTYPES[dtype].itemsize):
                file.put(source.values(part).to(TORCH_DTYPES[dtype]).contiguous(), name)

    return write


def _small_files(
    out: Path, shards: Mapping[str, Mapping[str, Shape]], reference: Path, iteration: Path, dtype: str
) -> list[Path]:
    """Index, config, generation config, tokenizer, model card."""
    config = json.loads((reference / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)  # what is written is not quantised
    config.pop("torch_dtype", None)
    config["dtype"] = _CONFIG_DTYPE[dtype]
    texts = {
        out / "config.json": json.dumps(config, indent=2) + "\n",
        out / "README.md": model_card.text(iteration, config),
    }
    if len(shards) > 1:
        placed = {name: file for file, shapes in shards.items() for name in shapes}
        size = sum(_size(shapes, dtype) for shapes in shards.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(placed.items()))}
        texts[out / INDEX] = json.dumps(index, indent=2) + "\n"
    for path, text in texts.items():
        write_atomic(path, text)
    copies = bridge_files.copy_tokenizer(_tokenizer(reference, iteration), out)
    generation = reference / "generation_config.json"
    if generation.is_file():
        write_atomic(out / generation.name, generation.read_text(encoding="utf-8"))
        copies.append(out / generation.name)
    return [*texts, *copies]


def _tokenizer(reference: Path, iteration: Path) -> Path:
    """Where the tokenizer is: with the checkpoint, which may have been trained with another one."""
    own = iteration / "tokenizer"
    return own if (own / "tokenizer.json").is_file() else reference


def _fingerprint(iteration: Path) -> dict[str, Any]:
    stat = (iteration / torch_dist.METADATA).stat()
    return {"path": str(iteration.absolute()), "metadata": [stat.st_size, stat.st_mtime_ns]}


def _size(shapes: Mapping[str, Shape], dtype: str) -> int:
    return sum(math.prod(shape) for shape in shapes.values()) * TORCH_DTYPES[dtype].itemsize
