"""Megatron -> Hugging Face: safetensors shards that transformers loads, written from start to end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.checkpoints import hugging_face, tensors, torch_dist
from engine.checkpoints import tokenizer as tokenizers
from engine.checkpoints.hugging_face import INDEX, SINGLE
from engine.checkpoints.safetensors_file import make_header
from engine.checkpoints.tensors import Shape
from engine.checkpoints.torch_dist import DistributedCheckpoint
from engine.errors import CheckpointError
from engine.models import MAX_CONFIG_BYTES, Model, read_config
from engine.paths import file_text, write_atomic
from engine.workers.stream import bridge_files, manifest, model_card, resources, scratch
from engine.workers.stream.files import JOURNAL, OnProgress, OutputFile, Unit, making, publish, write_all
from engine.workers.stream.reading import HuggingFaceReader, MegatronReader
from engine.workers.stream.to_hugging_face import PIECE_BYTES, FromHuggingFace, FromMegatron, Source, parts
from engine.workers.stream.values import DTYPES, FP32, OF_TORCH, DType, cast

if TYPE_CHECKING:
    from engine.workers.stream.adapters import Adapters

MAX_SHARD_BYTES, MIN_SHARD_BYTES = 5_000_000_000, 250_000_000
_SHARDS_PER_THREAD = 3
_SAFETENSORS_TYPE = {"bf16": "BF16", "fp32": "F32"}
_CONFIG_DTYPE = {"bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What an export may have beyond the checkpoint's own content."""

    base: Path | None = None
    """For adapters: the weights that they were trained on, a Megatron or a Hugging Face checkpoint."""
    origin: str = ""
    """For adapters: how PEFT finds the base; the reference when it is empty."""
    tokenizer: Path | None = None
    """Directory of the tokenizer, where it is not the checkpoint's or the reference's own."""
    describe: Callable[[Path], Iterable[Path]] | None = None
    """Adds files to the directory in the making and returns them."""


def export(
    source: Path,
    out: Path,
    reference: Path,
    dtype: str,
    *,
    extras: Extras | None = None,
    on_progress: OnProgress | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """Make the Hugging Face checkpoint `out` from one iteration of the Megatron checkpoint `source`.

    `reference` is the Hugging Face directory that it came from: its config.json and tokenizer are
    taken, its weights are not looked at. `dtype` is bf16 or fp32. Adapters are added to their base and
    written alone, too. `out` appears when it is complete. Raises CheckpointError naming every tensor
    that is missing; else as `convert`.
    """
    started = time.monotonic()
    scratch.return_large_blocks()
    extras = extras or Extras()
    model = read_config(reference)
    with ExitStack() as stack:
        trained = open_trained(stack, source, model, extras.base, DTYPES[dtype])
        tokenizer = extras.tokenizer or _tokenizer(reference, trained.iteration)
        tokenizers.require_rows(tokenizer, model)
        # No reason to refuse: the training may have had a tokenizer of its own.
        config = hugging_face.read_json(reference / "config.json", MAX_CONFIG_BYTES)
        warnings = tokenizers.unknown_ids(tokenizer, config)
        threads = resources.threads_for(
            _thread_bytes(trained, model, dtype), threads, has_torch=trained.adapters is not None
        )
        shards = _shards(tensors.hugging_face(model), DTYPES[dtype].itemsize, threads)
        identity = {
            "to": "hugging face",
            "dtype": dtype,
            "source": trained.fingerprint,
            "shards": len(shards),
        }
        partial = stack.enter_context(making(out, identity))
        written = write_all(
            _units(partial, trained, shards, model, dtype), partial, partial / JOURNAL, threads, on_progress
        )
        small = _small_files(partial, shards, reference, trained.iteration, dtype)
        small += bridge_files.copy_tokenizer(tokenizer, partial)
        if trained.adapters:
            from engine.workers.stream import adapters

            base = extras.origin or str(reference)
            small.append(adapters.write_config(partial / adapters.FOLDER, trained.adapters.lora, base))
        if extras.describe:
            small += [path for path in extras.describe(partial) if path not in small]
        facts = {
            "kind": "hugging face",
            "from": str(trained.iteration),
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
        "adapters": len(trained.adapters.lora.modules) if trained.adapters else 0,
        "warnings": warnings,
        "threads": threads,
        "seconds": round(time.monotonic() - started, 2),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What is exported: the tensors, and where they come from."""

    iteration: Path
    source: Source
    adapters: Adapters | None
    fingerprint: Any
    stored_bytes: int
    """Size of the largest value that is read."""


def open_trained(stack: ExitStack, source: Path, model: Model, base: Path | None, dtype: DType) -> Trained:
    """The weights in `source`, or those in `base` with the adapters in `source` added. Raises CheckpointError."""
    iteration = torch_dist.find_iteration(source)
    checkpoint = torch_dist.read(iteration)
    if not checkpoint.has_adapters:
        require_whole(checkpoint, model)
        weights = FromMegatron(stack.enter_context(MegatronReader(checkpoint)), model)
        stored = max(torch_dist.ITEM_BYTES[tensor.dtype] for tensor in checkpoint.weights().values())
        return Trained(iteration=iteration, source=weights, adapters=None, fingerprint=_fingerprint(iteration),
                       stored_bytes=stored)  # fmt: skip
    from engine.workers.stream import adapters  # torch adds them up, and only they need it

    lora = adapters.read(checkpoint, model)
    if base is None:
        raise CheckpointError(
            f"{iteration} holds LoRA adapters and not the weights that they change",
            "name those, a Megatron or a Hugging Face checkpoint: --base DIR",
        )
    found = adapters.Adapters(stack.enter_context(MegatronReader(checkpoint)), model, lora)
    below, fingerprint = _base(stack, base, model)
    return Trained(
        iteration=iteration,
        source=adapters.WithAdapters(below, found, dtype),
        adapters=found,
        fingerprint=[_fingerprint(iteration), fingerprint],
        # The sum of an expert and its change is made in fp32, out of three matrices.
        stored_bytes=4 * FP32.itemsize,
    )


def _base(stack: ExitStack, base: Path, model: Model) -> tuple[Source, Any]:
    if (base / "config.json").is_file():
        reference = hugging_face.read(base)
        if tensors.hugging_face(reference.model) != tensors.hugging_face(model):
            raise CheckpointError(f"{base} is another model than the adapters'", "give the model they were trained on")
        return FromHuggingFace(stack.enter_context(HuggingFaceReader(reference))), manifest.fingerprint(reference)
    iteration = torch_dist.find_iteration(base)
    checkpoint = torch_dist.read(iteration)
    require_whole(checkpoint, model)
    return FromMegatron(stack.enter_context(MegatronReader(checkpoint)), model), _fingerprint(iteration)


def _units(
    partial: Path, trained: Trained, shards: Mapping[str, dict[str, Shape]], model: Model, dtype: str
) -> list[Unit]:
    """The large files to write, for which there is room. Raises PreflightError."""
    units = [
        Unit(name=name, size_bytes=_size(shapes, dtype), write=_writer(trained.source, shapes, dtype))
        for name, shapes in shards.items()
    ]
    if found := trained.adapters:
        from engine.workers.stream import adapters

        (partial / adapters.FOLDER).mkdir(exist_ok=True)
        kind = _SAFETENSORS_TYPE[dtype]
        units.append(
            Unit(
                name=f"{adapters.FOLDER}/{adapters.WEIGHTS}",
                size_bytes=adapters.size_bytes(model, found.lora, DTYPES[dtype].itemsize),
                write=lambda file: adapters.write_weights(file, found, model, kind),
            )
        )
    there = sum(path.stat().st_size for path in partial.rglob("*.safetensors"))
    resources.require_disk(partial, sum(unit.size_bytes for unit in units), there)
    return units


def require_whole(checkpoint: DistributedCheckpoint, model: Model) -> None:
    """Raise CheckpointError unless every weight of `model` is there, and nothing else."""
    if checkpoint.has_adapters:
        raise CheckpointError(
            f"{checkpoint.path} holds LoRA adapters and not the weights that they change", "name the base instead"
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


def _thread_bytes(trained: Trained, model: Model, dtype: str) -> int:
    """The most that one thread holds: an expert as it was read, put together, and as it is written."""
    item = DTYPES[dtype].itemsize
    return max(2 * model.ffn * model.hidden, PIECE_BYTES // item) * (2 * item + trained.stored_bytes)


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
            for part in parts(name, shape, DTYPES[dtype].itemsize):
                file.put(np.ascontiguousarray(cast(source.values(part), DTYPES[dtype])), name)

    return write


def _small_files(
    out: Path, shards: Mapping[str, Mapping[str, Shape]], reference: Path, iteration: Path, dtype: str
) -> list[Path]:
    """Index, config, generation config, model card."""
    config = json.loads(file_text(reference / "config.json"))
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
    generation = reference / "generation_config.json"
    if generation.is_file():
        write_atomic(out / generation.name, file_text(generation))
        return [*texts, out / generation.name]
    return [*texts]


def _tokenizer(reference: Path, iteration: Path) -> Path:
    """Where the tokenizer is: with the checkpoint, which may have been trained with another one."""
    own = iteration / "tokenizer"
    return own if (own / "tokenizer.json").is_file() else reference


def _fingerprint(iteration: Path) -> dict[str, Any]:
    stat = (iteration / torch_dist.METADATA).stat()
    return {"path": str(iteration.absolute()), "metadata": [stat.st_size, stat.st_mtime_ns]}


def _size(shapes: Mapping[str, Shape], dtype: str) -> int:
    return sum(math.prod(shape) for shape in shapes.values()) * DTYPES[dtype].itemsize
