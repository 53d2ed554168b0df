"""The Parquet files from which Megatron-Bridge reads fine-tuning data.

One row is one sample: `input_ids`, `loss_mask` and `seq_start_id`, the start of each chat in it
(megatron/bridge/data/packing/parquet.py, 0.6.2). A chat of n tokens gives n - 1 places to train, since each
token is predicted from those before it; Bridge cuts the last one off and wants the mask of place i to say
whether token i + 1 counts (packing/algorithms.py, `fill_packing_strategy`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.data import optional
from engine.data.packing import Packs, pack

_PURPOSE = "writing fine-tuning data"
_ROWS_PER_GROUP = 64
"""Bridge reads a whole group for one row and keeps only the last one: small groups make a shuffle cheap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRules:
    """How chats become rows."""

    sequence_length: int
    is_packed: bool = True
    """False gives every chat a row of its own: what the CPU, without TransformerEngine, can train."""
    multiple: int = 1
    """Each chat is padded to a multiple of this: 2 x cp, and tp x cp with sequence parallelism."""
    padding_id: int = 0
    seed: int = 1234


@dataclass(frozen=True, slots=True, kw_only=True)
class Chats:
    """The files with the tokenised chats of one side, one after the other."""

    tokens: Path
    """int32."""
    masks: Path
    """A byte for each token: 1 where the model learns to write it."""
    lengths: Path
    """int32, tokens of each chat."""


def write(target: Path, chats: Chats, rules: PackRules) -> dict[str, Any]:
    """Write `chats` as rows.

    Returns the facts about the packing. Raises OSError.
    """
    numpy = optional.load("numpy", _PURPOSE)
    sizes = numpy.fromfile(chats.lengths, dtype=numpy.int32).astype(numpy.int64)
    starts = numpy.concatenate([[0], numpy.cumsum(sizes)])
    padded = -(-(sizes - 1) // rules.multiple) * rules.multiple
    packs = pack(padded.tolist(), rules.sequence_length) if rules.is_packed else _alone(padded.tolist(), rules)
    rows = list(packs.rows)
    # Packing sorts by length, and training must not.
    random.Random(rules.seed).shuffle(rows)
    ids = numpy.memmap(chats.tokens, dtype=numpy.int32, mode="r")
    trained = numpy.memmap(chats.masks, dtype=numpy.uint8, mode="r")
    with _Writer(target) as writer:
        for row in rows:
            parts = [(ids[starts[i] : starts[i + 1]], trained[starts[i] : starts[i + 1]], int(padded[i])) for i in row]
            writer.add(*_row(numpy, parts, rules.padding_id))
    return {
        "rows": len(rows),
        "chats": len(sizes),
        "efficiency": round(float((sizes - 1).sum()) / max(1, len(rows) * rules.sequence_length), 4),
        "longest": int(padded.max(initial=0)),
        "most_in_a_row": max(map(len, rows), default=0),
        "shortest_row": min((int(padded[list(row)].sum()) for row in rows), default=0),
    }


def metadata(facts: dict[str, Any], sequence_length: int) -> dict[str, Any]:
    """The facts in the words of Bridge's own metadata file (packing/algorithms.py, `create_packing_strategy`)."""
    return {
        "dataset_max_seqlen": facts["longest"],
        "max_samples_per_bin": facts["most_in_a_row"],
        "packing_factor": round(facts["chats"] / max(1, facts["rows"]), 2),
        "packing_efficiency": round(100 * facts["efficiency"], 2),
        "pack_size": sequence_length,
        "min_packed_seqlen": facts["shortest_row"],
    }


def _alone(lengths: list[int], rules: PackRules) -> Packs:
    rows = tuple((number,) for number in range(len(lengths)))
    return Packs(rows=rows, capacity=rules.sequence_length, filled=sum(lengths))


def _row(numpy: Any, parts: list[tuple[Any, Any, int]], padding_id: int) -> tuple[Any, Any, list[int]]:
    ids, masks, begins, position = [], [], [], 0
    for tokens, trained, padded in parts:
        begins.append(position)
        padding = padded + 1 - len(tokens)
        ids += [tokens, numpy.full(padding, padding_id, dtype=numpy.int32)]
        masks += [trained[1:], numpy.zeros(padding + 1, dtype=numpy.uint8)]
        position += padded + 1
    return numpy.concatenate(ids), numpy.concatenate(masks).astype(numpy.int8), begins


class _Writer:
    """Rows into one Parquet file, a group at a time."""

    def __init__(self, target: Path) -> None:
        self._arrow = optional.load("pyarrow", _PURPOSE)
        parquet = optional.load("pyarrow.parquet", _PURPOSE)
        arrow = self._arrow
        types = {"input_ids": arrow.int32(), "loss_mask": arrow.int8(), "seq_start_id": arrow.int32()}
        self._schema = arrow.schema([(name, arrow.list_(kind)) for name, kind in types.items()])
        self._file = parquet.ParquetWriter(str(target), self._schema)
        self._held: list[tuple[Any, Any, list[int]]] = []

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *unused: object) -> None:
        self._flush()
        self._file.close()

    def add(self, ids: Any, mask: Any, begins: list[int]) -> None:
        self._held.append((ids, mask, begins))
        if len(self._held) >= _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            columns = [list(column) for column in zip(*self._held, strict=True)]
            arrays = [self._arrow.array(c, field.type) for c, field in zip(columns, self._schema, strict=True)]
            self._file.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
            self._held.clear()
