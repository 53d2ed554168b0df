"""The samples of the last and of the best evaluation, kept so that others can compute the same loss again.

Each data-parallel rank of the last pipeline stage writes its own samples; `last.json`, written after all of them,
names the iteration and the loss that Megatron reported. `best.json` does the same for the lowest loss so far, and
`first.json` for the first iteration of the training, whose weights are those that were converted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import StepFailed
from engine.paths import write_atomic
from engine.run.directory import RunDirectory

_LAST, _BEST, _FIRST = "last.json", "best.json", "first.json"


def directory(run: RunDirectory) -> Path:
    """Where the samples lie."""
    return run.path / "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastEvaluation:
    """What Megatron reported of one evaluation, and the files with its samples."""

    iteration: int
    loss: float
    files: tuple[str, ...]


def read_last(run: RunDirectory) -> LastEvaluation | None:
    """The last evaluation that was recorded whole, or None."""
    return _read(directory(run) / _LAST)


def read_first(run: RunDirectory) -> LastEvaluation | None:
    """The first iteration of the training, or None."""
    return _read(directory(run) / _FIRST)


def read_of(run: RunDirectory, iteration: int) -> LastEvaluation | None:
    """The evaluation at `iteration`, when it was the last or the best one, else None."""
    kept = (_read(directory(run) / name) for name in (_LAST, _BEST))
    return next((one for one in kept if one and one.iteration == iteration), None)


def _read(file: Path) -> LastEvaluation | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
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
    """Keeps what passes through the forward step while the model is being evaluated, and in the first iteration."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._batches: list[tuple[Any, Any, Any]] = []
        self.iteration = -1
        """Of the last evaluation in this process; -1 before the first."""
        self._is_first = False

    def forward_step(self, state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
        """Bridge's own forward step; in an evaluation and in the first iteration the batch is remembered."""
        from megatron.bridge.training.gpt_step import forward_step
        from megatron.core.utils import unwrap_model

        # The last stage alone computes the loss; its tensor and context ranks see the same samples.
        is_kept = self._is_first or not model.training
        if is_kept and unwrap_model(model).post_process and _is_first_copy():
            data_iterator = self._remembering(data_iterator)
        return forward_step(state, data_iterator, model, return_schedule_plan)

    def begin(self) -> None:
        self._batches = []

    def begin_first(self) -> None:
        """The next iteration is the training's first."""
        self._batches, self._is_first = [], True

    def end_first(self, loss: float | None) -> None:
        """Save the first iteration's samples; every rank calls it, and it does nothing after the first time."""
        if not self._is_first:
            return
        self._is_first = False
        files, _ = self._save("first")
        if loss is not None and math.isfinite(loss):
            value = {"iteration": 1, "loss": loss, "files": files}
            write_atomic(directory(self._run) / _FIRST, json.dumps(value) + "\n")

    def end(self, iteration: int, loss: float | None, *, is_best: bool = False) -> float:
        """Save the samples; every rank calls it, and the one that knows the loss gives it.

        Returns the loss, to every rank.
        """
        self.iteration = iteration
        folder = directory(self._run)
        files, losses = self._save(f"iteration-{iteration:07d}", loss)
        if loss is not None:
            value = json.dumps({"iteration": iteration, "loss": loss, "files": files}) + "\n"
            if is_best:
                write_atomic(folder / _BEST, value)
            write_atomic(folder / _LAST, value)
            best = _read(folder / _BEST)
            for old in folder.glob("iteration-*.npz"):
                if old.name not in files and not (best and old.name in best.files):
                    old.unlink()
        return next(iter(losses), math.nan)

    def _save(self, stem: str, loss: float | None = None) -> tuple[list[str], list[float]]:
        """Write this rank's samples; return all ranks' files, and the losses of those that know it."""
        import torch

        name = f"{stem}-rank-{torch.distributed.get_rank():05d}.npz"
        if self._batches:
            self._write(directory(self._run), name)
        told: list[Any] = [None] * torch.distributed.get_world_size()
        # It is also the barrier: no record may name a file that is still being written.
        torch.distributed.all_gather_object(told, (name if self._batches else None, loss))
        self._batches = []
        return [file for file, _ in told if file], [known for _, known in told if known is not None]

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
