"""Whether a Megatron checkpoint is the Hugging Face checkpoint it claims to be.

Four independent looks: every tensor is there and none is constant; the files are those that were
written; exported again, every value equals the reference's bit for bit; and transformers and
Megatron compute the same logits. The third cannot see a mistake that import and export share, the
fourth can.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints import hugging_face, manifest, tensors, torch_dist
from engine.checkpoints.hugging_face import HuggingFaceCheckpoint
from engine.checkpoints.tensors import Shape
from engine.checkpoints.torch_dist import Chunk, DistributedCheckpoint
from engine.errors import CheckpointError
from engine.models import Model
from engine.workers.stream import adapters, forward, logits, resources, scratch
from engine.workers.stream.export import open_trained
from engine.workers.stream.files import OnProgress
from engine.workers.stream.reading import HuggingFaceReader, MegatronReader
from engine.workers.stream.to_hugging_face import (
    PIECE_BYTES,
    FromHuggingFace,
    Part,
    Source,
    parts,
)
from engine.workers.stream.values import TORCH_DTYPES

_FP32_SHARE = 0.4
"""Logits are computed in fp32 when one layer in it takes less than this share of the free memory."""


_MEGATRON_BYTES = 1 << 30
"""Megatron, Bridge and transformers, imported: 0.55 GiB is the peak of a verify step of the tiny model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One tensor that is not the reference's."""

    name: str
    """By its Hugging Face name."""
    values: int
    """How many differ."""
    largest: float
    """Largest difference."""
    guess: str
    """What it looks like, or nothing."""

    def __str__(self) -> str:
        text = f"{self.name}: {self.values:,} values differ, by up to {self.largest:.3g}"
        return f"{text} ({self.guess})" if self.guess else text


def verify(
    checkpoint: Path,
    against: Path | None,
    *,
    base: Path | None = None,
    with_logits: bool = True,
    on_progress: OnProgress | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """Take every look that is possible and return what was seen; `problems` is empty when all is well.

    `against` is the Hugging Face directory; without it only the checkpoint itself is looked at. `base` has
    the weights below adapters. Raises CheckpointError when there is nothing to compare.
    """
    torch.set_num_threads(1)
    scratch.return_large_blocks()
    iteration = torch_dist.find_iteration(checkpoint)
    stored = torch_dist.read(iteration)
    problems = stored.problems()
    base = base if adapters.has_adapters(stored) else None
    result: dict[str, Any] = {"checkpoint": str(iteration), "against": str(against) if against else None}
    if (listed := manifest.read(iteration.parent)) is not None and not problems:
        problems += manifest.differences(iteration.parent, listed, on_progress)
        result["files_compared"] = len(listed["files"])
    if against is None and not problems:
        problems += constant_tensors(stored)
    elif against is not None and not problems:
        look = _Look(stored=stored, reference=hugging_face.read(against), base=base, result=result)
        problems += look.at_files() + look.at_weights(on_progress, threads)
        if with_logits:
            problems += look.at_logits(on_progress)
    return {**result, "problems": problems, "is_verified": not problems}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """The comparison of a checkpoint with a Hugging Face directory; each look returns what is wrong, in words."""

    stored: DistributedCheckpoint
    reference: HuggingFaceCheckpoint
    base: Path | None
    result: dict[str, Any]
    """Gets what was seen."""

    def at_files(self) -> list[str]:
        """The description of either side, and an adapter beside the merged weights."""
        path, model = self.reference.path, self.reference.model
        problems = forward.run_config_differences(self.stored.path, model)
        if (listed := manifest.read(path)) is not None:
            # The weights are compared value by value.
            small = {name: facts for name, facts in listed["files"].items() if not name.endswith(".safetensors")}
            problems += manifest.differences(path, {**listed, "files": small})
        if (path / adapters.FOLDER).is_dir():
            problems += adapters.differences(path / adapters.FOLDER, self.stored.path, model)
        return problems

    def at_weights(self, on_progress: OnProgress | None, threads: int) -> list[str]:
        found = weight_differences(
            self.stored, self.reference, base=self.base, on_progress=on_progress, threads=threads
        )
        self.result["tensors_compared"] = len(tensors.hugging_face(self.reference.model))
        return [str(one) for one in found]

    def at_logits(self, on_progress: OnProgress | None) -> list[str]:
        if self.base is not None and (self.base / "config.json").is_file():
            raise CheckpointError(
                f"{self.base} is a Hugging Face checkpoint, and Megatron needs its own to compute logits",
                "convert it first, or compare values only: --no-logits",
            )
        precision = precision_for(self.reference.model)
        needed, free = logits_bytes(self.reference.model, precision), resources.available_memory_bytes()
        if needed > free:
            self.result["logits_skipped"] = (
                f"logits not compared: that needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} are free"
            )
            return []
        found = compare_logits(self.reference, self.stored, precision, self.base, on_progress)
        self.result.update(
            precision=precision,
            logits=[{**one.to_json(), "allowed": one.allowed(precision)} for one in found],
            kl_allowed=logits.MAX_KL[precision],
        )
        return [one.sentence(precision) for one in found if not one.is_within(precision)]


def weight_differences(
    stored: DistributedCheckpoint,
    reference: HuggingFaceCheckpoint,
    *,
    base: Path | None = None,
    on_progress: OnProgress | None = None,
    threads: int = 0,
) -> list[Difference]:
    """The tensors that, exported, would differ from the reference in any bit. Raises CheckpointError for NaN."""
    shapes = tensors.hugging_face(reference.model)
    model = reference.model
    threads = resources.threads_for(6 * model.ffn * model.hidden * 4, threads)
    done = 0
    lock = threading.Lock()
    with ExitStack() as stack:
        wanted = FromHuggingFace(stack.enter_context(HuggingFaceReader(reference)))
        held = torch.bfloat16 if all(one.dtype != "F32" for one in reference.tensors.values()) else torch.float32
        found = open_trained(stack, stored.path, model, base, held).source

        def look(item: tuple[str, Shape]) -> Difference | None:
            nonlocal done
            difference = _difference(found, wanted, *item)
            with lock:
                done += 1
                if on_progress:
                    on_progress(f"{done} of {len(shapes)} tensors compared", done, len(shapes))
            return difference

        with ThreadPoolExecutor(threads) as pool:
            return [one for one in pool.map(look, shapes.items()) if one is not None]


def compare_logits(
    reference: HuggingFaceCheckpoint,
    stored: DistributedCheckpoint,
    precision: str,
    base: Path | None = None,
    on_progress: OnProgress | None = None,
) -> list[logits.Comparison]:
    """transformers with the reference against Megatron with the checkpoint, at three lengths."""
    torch.set_num_threads(resources.cores())
    prompts = logits.prompts(reference.model.vocab, reference.model.window)
    layers = reference.model.layers

    def telling(who: str) -> forward.OnLayer | None:
        if on_progress is None:
            return None
        return lambda layer: on_progress(f"logits by {who}: layer {layer + 1} of {layers}", layer, layers)

    expected = forward.transformers_logits(reference.path, prompts, precision, telling("transformers"))
    found = forward.megatron_logits(stored.path, prompts, precision, base, telling("Megatron"))
    return logits.compare(expected, found)


def precision_for(model: Model) -> str:
    """fp32, the sharper, where a layer of it fits."""
    layer_bytes = max(model.layer_parameters, model.embedding_parameters) * 4
    return "fp32" if layer_bytes < _FP32_SHARE * resources.available_memory_bytes() else "bf16"


def logits_bytes(model: Model, precision: str) -> int:
    """About what computing them needs: one layer of either model, both sides' logits and a copy, and Megatron."""
    layer = max(model.layer_parameters, model.embedding_parameters) * TORCH_DTYPES[precision].itemsize
    rows = sum(prompt.shape[1] for prompt in logits.prompts(2, model.window))
    padded = len(logits.prompts(2, model.window)) * 4 * model.window
    return layer + (2 * padded + rows) * model.vocab * 4 + _MEGATRON_BYTES


def _difference(found: Source, wanted: Source, name: str, shape: Shape) -> Difference | None:
    count, largest = 0, 0.0
    guesses: list[str] = []
    for part in parts(name, shape, 4):
        expected = wanted.values(part).clone()
        values = found.values(part)
        # Either may have been rounded on its way: compared is what the narrower format keeps.
        kind = min(expected.dtype, values.dtype, key=lambda dtype: dtype.itemsize)
        expected, values = expected.to(kind), values.to(kind)
        if torch.equal(values, expected):
            continue
        unequal = values != expected
        count += int(unequal.sum())
        largest = max(largest, float((values.float() - expected.float()).abs().max()))
        if not guesses:
            guesses.append(_guess(part, values.clone(), wanted))
    return Difference(name=name, values=count, largest=largest, guess=guesses[0]) if guesses else None


def _guess(part: Part, values: Tensor, wanted: Source) -> str:
    """What may have happened to this part; a person looks there first."""
    if not values.count_nonzero():
        return "all zero"
    if not tensors.is_expert_weight(part.name):
        return ""
    for expert in range(part.shape[0]):
        other = wanted.values(Part(name=part.name, shape=part.shape, start=expert, stop=expert + 1)).to(values.dtype)
        if torch.equal(values, other):
            return f"expert {part.start} is the reference's expert {expert}"
        if values.shape[1] == values.shape[2] and expert == part.start and torch.equal(values, other.mT):
            return f"expert {part.start} is transposed"
    return ""


def constant_tensors(stored: DistributedCheckpoint) -> list[str]:
    """Matrices of which some part holds one value only: nobody ever gave them their weights."""
    found = []
    with MegatronReader(stored) as reader:
        for key, tensor in stored.weights().items():
            if key.endswith(("bias", "norm_weight", "norm.weight")):
                continue  # these may well be all zero or all one
            found += [
                f"{key} at {list(offsets)} holds one value only"
                for chunk in tensor.chunks
                for offsets, sizes in _boxes(chunk)
                if _is_constant(reader.box(key, offsets, sizes))
            ]
    return found


def _boxes(chunk: Chunk) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A chunk as boxes of bounded size: rows of its first axis that has more than one entry."""
    axis = next((i for i, size in enumerate(chunk.sizes) if size > 1), 0)
    step = max(1, PIECE_BYTES // (4 * math.prod(chunk.sizes[axis + 1 :])))
    for start in range(0, chunk.sizes[axis], step):
        count = min(step, chunk.sizes[axis] - start)
        offsets, sizes = list(chunk.offsets), list(chunk.sizes)
        offsets[axis], sizes[axis] = chunk.offsets[axis] + start, count
        yield tuple(offsets), tuple(sizes)


def _is_constant(values: Tensor) -> bool:
    low, high = torch.aminmax(values)
    return values.numel() > 1 and bool(low == high)
