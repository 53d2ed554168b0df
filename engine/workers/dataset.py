"""Megatron's .bin/.idx pairs: write one from documents, check one that a person brings."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import batched
from pathlib import Path
from typing import Any

from engine.errors import SettingsError

MANIFEST = "manifest.json"
VERSION = 1

_HEADER = b"MMIDIDX\x00\x00"
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
"""Megatron's codes of the whole-number types (megatron/core/datasets/indexed_dataset.py:50)."""
_BATCH = 64
_CHUNK_TOKENS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the prepare step made or found: `data/manifest.json`."""

    source: str
    prefix: str = ""
    """The .bin/.idx pair of source `prefix`, without its ending; the others lie beside the manifest."""
    documents: int = 0
    train_tokens: int = 0
    validation_tokens: int = 0
    vocabulary_size: int = 0
    tokenizer_hash: str = ""

    def save(self, directory: Path) -> None:
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1)
        (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Manifest:
        """Raises SettingsError when the prepare step has not finished."""
        try:
            value = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            value.pop("version")
            return cls(**value)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise SettingsError(
                f"{directory / MANIFEST} cannot be used: {error}", "run the prepare step again"
            ) from error


class Writer:
    """Writes documents to `prefix`.bin and `prefix`.idx with Megatron's own builder."""

    def __init__(self, prefix: Path, tokenizer: Any, end_of_document: int) -> None:
        import numpy
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        self._prefix = prefix
        self._encode = tokenizer.backend_tokenizer.encode_batch_fast
        self._end = [end_of_document]
        self._builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.int32)
        self.documents = 0
        self.tokens = 0

    def add(self, texts: Iterable[str]) -> None:
        """Append `texts`, each followed by the end-of-document token."""
        for batch in batched(texts, _BATCH):
            for encoding in self._encode(list(batch), add_special_tokens=False):
                ids = encoding.ids + self._end
                self._builder.add_document(ids, [len(ids)])
                self.documents += 1
                self.tokens += len(ids)

    def finish(self) -> None:
        """Write the index; before this the pair is not readable."""
        self._builder.finalize(f"{self._prefix}.idx")


def check_prefix(prefix: Path, vocabulary_size: int, validation_percent: float) -> tuple[int, int, int]:
    """Documents, training tokens and validation tokens of the pair at `prefix`.

    Raises SettingsError when Megatron could not train on it.
    """
    import numpy

    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for path in (index, data):
        if not path.is_file():
            raise SettingsError(f"data.path: there is no {path}", "give the prefix of a .bin/.idx pair, without ending")
    with index.open("rb") as stream:
        header = stream.read(34)
    if len(header) < 34 or not header.startswith(_HEADER):
        raise SettingsError(f"{index} is not a Megatron index", "make it with tools/preprocess_data.py")
    version, code, sequences, boundaries = struct.unpack("<QBQQ", header[9:])
    name = _DTYPES.get(code)
    if version != 1 or name is None:
        raise SettingsError(f"{index} has version {version} and token type {code}", "make it again with int32 tokens")
    dtype: Any = numpy.dtype(name)
    expected = 34 + 12 * sequences + 8 * boundaries
    if index.stat().st_size < expected or not sequences:
        raise SettingsError(
            f"{index} is cut off: it has {index.stat().st_size:,} of {expected:,} bytes", "copy it again"
        )
    lengths: Any = numpy.memmap(index, dtype=numpy.int32, mode="r", offset=34, shape=(sequences,))
    tokens = int(lengths.sum(dtype=numpy.int64))
    if data.stat().st_size != tokens * dtype.itemsize:
        raise SettingsError(
            f"{data} has {data.stat().st_size:,} bytes; its index says {tokens * dtype.itemsize:,}",
            "copy both again",
        )
    _check_ids(data, dtype, vocabulary_size)
    documents = int(boundaries) - 1
    first_held_out = _first_held_out(documents, validation_percent)
    ends: Any = numpy.memmap(index, dtype=numpy.int64, mode="r", offset=34 + 12 * sequences, shape=(boundaries,))
    train_tokens = int(lengths[: ends[first_held_out]].sum(dtype=numpy.int64))
    return documents, train_tokens, tokens - train_tokens


def _first_held_out(documents: int, validation_percent: float) -> int:
    """The first document of the validation; Megatron rounds the same way and waits forever for an empty split.

    (megatron/core/datasets/blended_megatron_dataset_builder.py, _build_megatron_dataset_splits)
    """
    first = round(documents * (1 - validation_percent / 100))
    if not 0 < first < documents:
        raise SettingsError(
            f"data.validation_percent: {validation_percent:g} % of {documents} documents leaves one side without any",
            f"give at least {100 / max(documents, 2):.2g}, or a dataset with more documents",
        )
    return first


def _check_ids(data: Path, dtype: Any, vocabulary_size: int) -> None:
    import numpy

    ids = numpy.memmap(data, dtype=dtype, mode="r")
    for start in range(0, len(ids), _CHUNK_TOKENS):
        chunk = ids[start : start + _CHUNK_TOKENS]
        low, high = int(chunk.min()), int(chunk.max())
        if low < 0 or high >= vocabulary_size:
            raise SettingsError(
                f"{data} holds the token id {high if high >= vocabulary_size else low}; "
                f"the model knows 0 to {vocabulary_size - 1}",
                "tokenise the text with the tokenizer of the model",
            )
