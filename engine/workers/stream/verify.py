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

import numpy as np

from engine.checkpoints import hugging_face, manifest, tensors, torch_dist
from engine.checkpoints.hugging_face import ADAPTER_FOLDER, HuggingFaceCheckpoint
from engine.checkpoints.tensors import Shape
from engine.checkpoints.torch_dist import Chunk, DistributedCheckpoint
from engine.errors import CheckpointError
from engine.workers.stream import resources, run_config, scratch
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
from engine.workers.stream.values import BF16, FP32, Array, bits, cast


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
    scratch.return_large_blocks()
    iteration = torch_dist.find_iteration(checkpoint)
    stored = torch_dist.read(iteration)
    problems = stored.problems()
    base = base if stored.has_adapters else None
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
        problems = run_config.differences(self.stored.path, model)
        if (listed := manifest.read(path)) is not None:
            # The weights are compared value by value.
            small = {name: facts for name, facts in listed["files"].items() if not name.endswith(".safetensors")}
            problems += manifest.differences(path, {**listed, "files": small})
        if (path / ADAPTER_FOLDER).is_dir():
            from engine.workers.stream import adapters

            problems += adapters.differences(path / ADAPTER_FOLDER, self.stored.path, model)
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
        from engine.workers.stream import logits, same_logits

        precision = same_logits.precision_for(self.reference.model)
        needed, free = same_logits.needed_bytes(self.reference.model, precision), resources.available_memory_bytes()
        if needed > free:
            self.result["logits_skipped"] = (
                f"logits not compared: that needs {needed / 2**30:.1f} GiB of memory and {free / 2**30:.1f} are free"
            )
            return []
        found = same_logits.compare(self.reference, self.stored, precision, self.base, on_progress)
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
    threads = resources.threads_for(6 * model.ffn * model.hidden * 4, threads, has_torch=stored.has_adapters)
    done = 0
    lock = threading.Lock()
    with ExitStack() as stack:
        wanted = FromHuggingFace(stack.enter_context(HuggingFaceReader(reference)))
        held = BF16 if all(one.dtype != "F32" for one in reference.tensors.values()) else FP32
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


def _difference(found: Source, wanted: Source, name: str, shape: Shape) -> Difference | None:
    count, largest = 0, 0.0
    guesses: list[str] = []
    for part in parts(name, shape, 4):
        expected = wanted.values(part).copy()
        values = found.values(part)
        # Either may have been rounded on its way: compared is what the narrower format keeps.
        kind = min(expected.dtype, values.dtype, key=lambda dtype: dtype.itemsize)
        expected, values = cast(expected, kind), cast(values, kind)
        unequal = bits(values) != bits(expected)
        if not unequal.any():
            continue
        count += int(unequal.sum())
        largest = max(largest, float(np.abs(cast(values, FP32) - cast(expected, FP32)).max()))
        if not guesses:
            guesses.append(_guess(part, values.copy(), wanted))
    return Difference(name=name, values=count, largest=largest, guess=guesses[0]) if guesses else None


def _guess(part: Part, values: Array, wanted: Source) -> str:
    """What may have happened to this part; a person looks there first."""
    if not np.any(cast(values, FP32)):
        return "all zero"
    if not tensors.is_expert_weight(part.name):
        return ""
    for expert in range(part.shape[0]):
        other = wanted.values(Part(name=part.name, shape=part.shape, start=expert, stop=expert + 1))
        other = cast(other, values.dtype)
        if np.array_equal(values, other):
            return f"expert {part.start} is the reference's expert {expert}"
        if values.shape[1] == values.shape[2] and expert == part.start and np.array_equal(values, other.swapaxes(1, 2)):
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


def _is_constant(values: Array) -> bool:
    return values.size > 1 and bool(values.min() == values.max())
