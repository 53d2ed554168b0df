"""The samples of the last evaluation, kept so that others can compute the same loss again.

Each data-parallel rank of the last pipeline stage writes its own samples; `last.json`, written
after all of them, names the iteration and the loss that Megatron reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import StepFailed
from engine.paths import write_atomic
from engine.run.directory import RunDirectory


def directory(run: RunDirectory) -> Path:
    """Where the samples lie."""
    return run.path / "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastEvaluation:
    """What Megatron reported of its last evaluation, and the files with its samples."""

    iteration: int
    loss: float
    files: tuple[str, ...]


def read_last(run: RunDirectory) -> LastEvaluation | None:
    """The last evaluation that was recorded whole, or None."""
    try:
        value = json.loads((directory(run) / "last.json").read_text(encoding="utf-8"))
        return LastEvaluation(iteration=value["iteration"], loss=value["loss"], files=tuple(value["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_samples(run: RunDirectory, evaluation: LastEvaluation) -> Iterator[tuple[Any, Any, Any]]:
    """Tokens, labels and loss mask of each micro batch, as arrays [samples, sequence]. Raises StepFailed."""
    import numpy

    for name in evaluation.files:
        try:
            with numpy.load(directory(run) / name) as arrays:
                tokens, labels, mask = arrays["tokens"], arrays["labels"], arrays["mask"]
        except (OSError, ValueError, KeyError) as error:
            raise StepFailed(f"{directory(run) / name} cannot be read: {error}", "run the train step again") from error
        yield from zip(tokens, labels, mask, strict=True)


class Recorder:
    """Keeps what passes through the forward step while the model is being evaluated."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._batches: list[tuple[Any, Any, Any]] = []
        self.iteration = -1
        """Of the last evaluation in this process; -1 before the first."""

    def forward_step(self, state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        """Bridge's own forward step; in an evaluation the batch is remembered."""
        from megatron.bridge.training.gpt_step import forward_step
        from megatron.core.utils import unwrap_model

        # The last stage alone computes the loss; its tensor and context ranks see the same samples.
        if not model.training and unwrap_model(model).post_process and _is_first_copy():
            data_iterator = self._remembering(data_iterator)
        return forward_step(state, data_iterator, model, return_schedule_plan)

    def begin(self) -> None:
        self._batches = []

    def end(self, iteration: int, loss: float | None) -> None:
        """Save the samples; every rank calls it, and those that know the loss give it."""
        import torch

        self.iteration = iteration
        folder = directory(self._run)
        name = f"iteration-{iteration:07d}-rank-{torch.distributed.get_rank():05d}.npz"
        if self._batches:
            self._write(folder, name)
        names: list[str | None] = [None] * torch.distributed.get_world_size()
        # It is also the barrier: last.json must not name a file that is still being written.
        torch.distributed.all_gather_object(names, name if self._batches else None)
        self._batches = []
        files = [file for file in names if file]
        if loss is not None:
            value = {"iteration": iteration, "loss": loss, "files": files}
            write_atomic(folder / "last.json", json.dumps(value) + "\n")
            for old in folder.glob("iteration-*.npz"):
                if old.name not in files:
                    old.unlink()

    def _write(self, folder: Path, name: str) -> None:
        import numpy

        folder.mkdir(exist_ok=True)
        tokens, labels, masks = zip(*self._batches, strict=True)
        numpy.savez_compressed(
            folder / name, tokens=numpy.stack(tokens), labels=numpy.stack(labels), mask=numpy.stack(masks)
        )

    def _remembering(self, data_iterator: Any) -> Iterator[Any]:
        import torch

        batch = next(data_iterator)
        arrays = (
            batch["tokens"].to(torch.int32).cpu().numpy(),
            batch["labels"].to(torch.int32).cpu().numpy(),
            batch["loss_mask"].to(torch.float32).cpu().numpy(),
        )
        starts = batch.get("cu_seqlens_q_padded", batch.get("cu_seqlens_q"))
        self._batches += [arrays] if starts is None else _unpacked(arrays, starts.flatten().tolist())
        yield batch


def _unpacked(arrays: tuple[Any, Any, Any], starts: list[int]) -> list[tuple[Any, Any, Any]]:
    """Each chat of a packed row as a row of its own, so that others need not know which tokens see each other."""
    import numpy

    mask, rows = arrays[2], []
    for start, end in zip(starts, starts[1:], strict=False):
        if not mask[0, start:end].any():
            continue  # the padding at the end of the row
        row = [numpy.zeros_like(array) for array in arrays]
        for target, array in zip(row, arrays, strict=True):
            target[0, : end - start] = array[0, start:end]
        rows.append((row[0], row[1], row[2]))
    return rows


def _is_first_copy() -> bool:
    from megatron.core import parallel_state

    return bool(
        parallel_state.get_tensor_model_parallel_rank() == 0 and parallel_state.get_context_parallel_rank() == 0
    )
