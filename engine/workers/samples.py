"""Training samples that need no index: invented tokens; and Bridge's own configuration for packed chats.

Megatron's own mock data builds an index over every sample of the run before the first iteration (1.95e9 samples,
as in NVIDIA's example, take over 100 GB of memory). Here a sample follows from its number, so a run of any
length starts at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
from megatron.bridge.data.base import DatasetBuildContext, DatasetProvider

_WORDS = 4096
"""Invented text repeats itself a little, so that its loss can fall."""


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
        # What Megatron's GPTDataset yields (gpt_dataset.py `__getitem__`).
        return {
            "tokens": torch.from_numpy(ids[:-1]),
            "labels": torch.from_numpy(ids[1:]),
            "loss_mask": torch.ones(config.seq_length),
            "position_ids": torch.arange(config.seq_length),
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
