"""Prepared chats as Megatron-Bridge's training data: its own packed data set on GPUs, one chat a row on the CPU.

Packed rows need Transformer Engine's attention (megatron/core/transformer/dot_product_attention.py:153).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from megatron.bridge.data.base import DatasetProvider

from engine.data.manifest import Manifest
from engine.settings import Settings
from engine.workers import profile, samples


def config(settings: Settings, device: str) -> Any:
    """The data set's configuration for Bridge; paths count from the run directory."""
    training = settings.training
    loop = profile.loop(device)
    learns_all = settings.finetune.learn == "everything"
    if device == "cpu":
        return ChatRows(
            seq_length=training.sequence_length,
            learns_all=learns_all,
            seed=training.seed,
            evaluated_samples=training.evaluation_iterations * training.global_batch,
            dataloader_type="single",
            num_workers=loop.loader_processes,
            pin_memory=False,
            persistent_workers=False,
        )
    # An incomplete global batch is filled with rows that do not count.
    loader = {"seed": training.seed, "drop_last": False, "num_workers": loop.loader_processes, "pin_memory": True}
    packed = samples.packed_chats("data", dict(Manifest.load(Path("data")).packing), loader)
    if learns_all:
        packed.dataset_kwargs["answer_only_loss"] = False
    return packed


_ENDLESS = 1 << 40


@dataclass
class ChatRows(DatasetProvider):
    """One chat a row, padded to the sequence length; epochs in a new order each, as the seed decides."""

    seq_length: int = 0
    learns_all: bool = False
    seed: int = 1234
    evaluated_samples: int = 0
    """Samples of one evaluation: each one looks at the same."""
    directory: str = "data"

    def build_datasets(self, context: Any) -> tuple[Any, Any, Any]:
        """Training rows as many as are asked for; validation rows without end, as evaluations are no fixed number."""
        folder = Path(self.directory)
        train = Rows(folder / "train.idx.parquet", self, context.train_samples)
        validation = Rows(folder / "validation.idx.parquet", self, _ENDLESS, self.evaluated_samples)
        return train, validation, None


class Rows:
    """The chats of one file as often as needed."""

    def __init__(self, path: Path, rows: ChatRows, samples: int, repeats_after: int = 0) -> None:
        """With `repeats_after` the order is that of the file, and begins anew after so many samples."""
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path, columns=["input_ids", "loss_mask"])
        self._ids = table.column("input_ids").combine_chunks()
        self._masks = table.column("loss_mask").combine_chunks()
        self._settings = rows
        self._samples = samples
        self._repeats_after = repeats_after
        self._order = (-1, numpy.arange(0))

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._row(int(index))
        ids: Any = self._ids[row].values.to_numpy(zero_copy_only=False).astype(numpy.int64)
        mask: Any = self._masks[row].values.to_numpy(zero_copy_only=False).astype(numpy.float32)
        length = self._settings.seq_length
        if self._settings.learns_all:
            mask = numpy.ones_like(mask)
        # The mask of place i says whether token i + 1 counts; the last token predicts nothing.
        return {
            "tokens": _padded(ids[:-1], length),
            "labels": _padded(ids[1:], length),
            "loss_mask": _padded(mask[:-1], length),
            "position_ids": numpy.arange(length, dtype=numpy.int64),
        }

    def _row(self, index: int) -> int:
        count = len(self._ids)
        if self._repeats_after:
            return index % self._repeats_after % count
        epoch, place = divmod(index, count)
        if self._order[0] != epoch:
            self._order = (epoch, numpy.random.default_rng((self._settings.seed, epoch)).permutation(count))
        return int(self._order[1][place])


def _padded(values: Any, length: int) -> Any:
    made: Any = numpy.zeros(length, dtype=values.dtype)
    made[: len(values)] = values
    return made
