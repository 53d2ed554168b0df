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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints import hugging_face, manifest, tensors, torch_dist
from engine.checkpoints.hugging_face import HuggingFaceCheckpoint
from engine.checkpoints.tensors import Shape
from engine.checkpoints.torch_dist import Chunk, DistributedCheckpoint
from engine.models import Model
from engine.workers.stream import forward, logits, resources, scratch
from engine.workers.stream.export import require_whole
from engine.workers.stream.files import OnProgress
from engine.workers.stream.reading import HuggingFaceReader, MegatronReader
from engine.workers.stream.to_hugging_face import (
    PIECE_BYTES,
    FromHuggingFace,
    FromMegatron,
    Part,
    Source,
    parts,
)

_FP32_SHARE = 0.4
"""Logits are computed in fp32 when one layer in it takes less than this share of the free memory."""


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
    with_logits: bool = True,
    on_progress: OnProgress | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """Take every look that is possible and return what was seen; `problems` is empty when all is well.

    `against` is the Hugging Face directory; without it only the checkpoint itself is looked at.
    Raises CheckpointError when there is nothing to compare.
    """
    torch.set_num_threads(1)
    scratch.return_large_blocks()
    iteration = torch_dist.find_iteration(checkpoint)
    stored = torch_dist.read(iteration)
    problems = stored.problems()
    result: dict[str, Any] = {"checkpoint": str(iteration), "against": str(against) if against else None}
    if (listed := manifest.read(iteration.parent)) is not None and not problems:
        problems += manifest.differences(iteration.parent, listed, on_progress)
        result["files_compared"] = len(listed["files"])
    if against is None and not problems:
        problems += constant_tensors(stored)
    elif against is not None and not problems:
        problems += _against(stored, hugging_face.read(against), result, with_logits, on_progress, threads)
    return {**result, "problems": problems, "is_verified": not problems}


def _against(
    stored: DistributedCheckpoint,
    reference: HuggingFaceCheckpoint,
    result: dict[str, Any],
    with_logits: bool,
    on_progress: OnProgress | None,
    threads: int,
) -> list[str]:
    require_whole(stored, reference.model)
    problems = forward.run_config_differences(stored.path, reference.model)
    found = weight_differences(stored, reference, on_progress=on_progress, threads=threads)
    result["tensors_compared"] = len(tensors.hugging_face(reference.model))
    problems += [str(one) for one in found]
    if with_logits:
        precision = precision_for(reference.model)
        comparisons = compare_logits(reference, stored, precision)
        result["precision"] = precision
        result["logits"] = [one.to_json() for one in comparisons]
        problems += [
            f"logits of {one.tokens} tokens differ by up to {one.difference:.3g} of {one.largest:.3g} "
            f"(KL {one.kl:.3g}, {one.agreement:.1%} of the predictions agree)"
            for one in comparisons
            if not one.is_within(precision)
        ]
    return problems


def weight_differences(
    stored: DistributedCheckpoint,
    reference: HuggingFaceCheckpoint,
    *,
    on_progress: OnProgress | None = None,
    threads: int = 0,
) -> list[Difference]:
    """The tensors that, exported, would differ from the reference in any bit. Raises CheckpointError for NaN."""
    shapes = tensors.hugging_face(reference.model)
    model = reference.model
    threads = resources.threads_for(6 * model.ffn * model.hidden * 4, threads)
    done = 0
    lock = threading.Lock()
    with MegatronReader(stored) as ours, HuggingFaceReader(reference) as theirs:
        found, wanted = FromMegatron(ours, model), FromHuggingFace(theirs)

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
    reference: HuggingFaceCheckpoint, stored: DistributedCheckpoint, precision: str
) -> list[logits.Comparison]:
    """transformers with the reference against Megatron with the checkpoint, at three lengths."""
    torch.set_num_threads(resources.cores())
    prompts = logits.prompts(reference.model.vocab, reference.model.window)
    expected = forward.transformers_logits(reference.path, prompts, precision)
    return logits.compare(expected, forward.megatron_logits(stored.path, prompts, precision))


def precision_for(model: Model) -> str:
    """fp32, the sharper, where a layer of it fits."""
    layer_bytes = max(model.layer_parameters, model.embedding_parameters) * 4
    return "fp32" if layer_bytes < _FP32_SHARE * resources.available_memory_bytes() else "bf16"


def _difference(found: Source, wanted: Source, name: str, shape: Shape) -> Difference | None:
    count, largest = 0, 0.0
    guesses: list[str] = []
    for part in parts(name, shape, 4):
        expected = wanted.values(part).clone()
        values = found.values(part)
        expected = expected.to(values.dtype)
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
