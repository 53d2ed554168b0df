"""Training samples that need no index: invented tokens, and chats one in a row.

Megatron's own mock data builds an index over every sample of the run before the first iteration (1.95e9 samples,
as in NVIDIA's example, take over 100 GB of memory). Here a sample follows from its number, so a run of any
length starts at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy
import torch
from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider

_WORDS = 4096
"""Invented text repeats itself a little, so that its loss can fall."""
_SIDES = {"train": 0, "validation": 1, "test": 2}


@dataclass
class MockSamples(DatasetProvider):
    """Configuration of invented tokens."""

    seq_length: int = 0
    vocabulary_size: int = 0
    random_seed: int = 1234

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, Any]:
        """Train, validation and test side; no memory whatever their size."""
        sizes = (context.train_samples, context.valid_samples, context.test_samples)
        return tuple(_Mock(self, side, size) if size else None for side, size in enumerate(sizes))  # type: ignore[return-value]


class _Mock(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, config: MockSamples, side: int, size: int) -> None:
        self._config = config
        self._side = side
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        config = self._config
        chance = numpy.random.default_rng([config.random_seed, self._side, int(index)])
        known = min(config.vocabulary_size, _WORDS)
        ids = chance.integers(0, known, size=config.seq_length + 1)
        # Every second token follows from the one before: something to learn.
        ids[1::2] = (ids[:-1:2] * 31 + 7) % known
        return _sample(ids, numpy.ones(config.seq_length, dtype=numpy.float32), config.seq_length, 0)


@dataclass
class ChatSamples(DatasetProvider):
    """Configuration of chats that have a row each (`PackRules.is_packed` false)."""

    seq_length: int = 0
    directory: str = ""
    """Where `train.idx.parquet` and `validation.idx.parquet` lie."""
    padding_id: int = 0
    random_seed: int = 1234

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any, Any, Any]:
        """Train and validation side; each is gone through in a new order in every epoch."""
        train = _Chats(self, "train", context.train_samples)
        has_validation = (Path(self.directory) / "validation.idx.parquet").exists() and context.valid_samples
        return train, _Chats(self, "validation", context.valid_samples) if has_validation else None, None


class _Chats(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, config: ChatSamples, side: str, size: int) -> None:
        import pyarrow.parquet

        self._config = config
        self._side = _SIDES[side]
        self._size = size
        path = Path(config.directory) / f"{side}.idx.parquet"
        self._rows = pyarrow.parquet.read_table(path, columns=["input_ids", "loss_mask"], memory_map=True)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(int(index), self._rows.num_rows)
        row = int(_order(self._config.random_seed, self._side, epoch, self._rows.num_rows)[place])
        ids = self._rows.column("input_ids")[row].values.to_numpy()
        mask = self._rows.column("loss_mask")[row].values.to_numpy()[:-1]
        return _sample(ids, mask, self._config.seq_length, self._config.padding_id)


@lru_cache(maxsize=4)
def _order(seed: int, side: int, epoch: int, rows: int) -> Any:
    return numpy.random.default_rng([seed, side, epoch]).permutation(rows)


def _sample(ids: Any, mask: Any, length: int, padding_id: int) -> dict[str, Any]:
    """What Megatron's GPTDataset yields (gpt_dataset.py `__getitem__`), padded to `length` places."""
    tokens: Any = numpy.full(length + 1, padding_id, dtype=numpy.int64)
    tokens[: len(ids)] = ids
    counts: Any = numpy.zeros(length, dtype=numpy.float32)
    counts[: len(mask)] = mask
    return {
        "tokens": torch.from_numpy(tokens[:-1].copy()),
        "labels": torch.from_numpy(tokens[1:].copy()),
        "loss_mask": torch.from_numpy(counts),
        "position_ids": torch.arange(length),
    }


def packed_chats(directory: str, facts: dict[str, Any], loader: dict[str, Any]) -> Any:
    """Bridge's own configuration for packed rows in `directory`; `facts` is the manifest's `packing`.

    Packed rows need TransformerEngine and a micro batch of 1.
    """
    from megatron.bridge.data.builders.gpt_sft import GPTSFTDatasetConfig
    from megatron.bridge.data.packing import PackedSequenceSpecs

    has_validation = "validation" in facts
    return GPTSFTDatasetConfig(
        seq_length=facts["sequence_length"],
        dataset_root=directory,
        enable_offline_packing=True,
        offline_packing_specs=PackedSequenceSpecs(
            packed_sequence_size=facts["sequence_length"],
            packed_train_data_path=f"{directory}/train.idx.parquet",
            packed_val_data_path=f"{directory}/validation.idx.parquet" if has_validation else None,
            packed_metadata_path=f"{directory}/packing.json",
            pad_seq_to_mult=facts["multiple"],
        ),
        dataset_kwargs={"pad_to_max_length": True},
        do_validation=has_validation,
        do_test=False,
        **loader,
    )
