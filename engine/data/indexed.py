"""Megatron's .bin/.idx pair: write the index, check a pair before a run may use it.

The .bin holds the tokens of all documents one after the other. The .idx holds a header, then for each
sequence its length (int32) and where it starts in the .bin (int64, bytes), then the first sequence of each
document (int64) and their total (megatron/core/datasets/indexed_dataset.py, `_IndexWriter`, 0.19.2).
With one sequence a document, as here, everything follows from the lengths.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.data import optional
from engine.errors import SettingsError

TOKEN_TYPES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
"""Megatron's codes of the whole-number types (indexed_dataset.py:50)."""

_LETTERS = {"int32": "i", "int64": "q", "uint16": "H"}
_SIZES = {name: struct.calcsize(f"<{letter}") for name, letter in _LETTERS.items()}
"""Of the types that can hold a language model's tokens."""

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CHUNK = 1 << 20
_PURPOSE = "reading token files"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderFacts:
    """What an index says of its pair, and whether the sizes of both files agree with it."""

    token_type: str
    sequences: int
    documents: int
    size_bytes: int
    """Of both files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFacts:
    """What a checked pair holds."""

    documents: int
    tokens: int
    token_type: str
    largest_id: int


def write_index(prefix: Path, lengths: Path, token_type: str) -> tuple[int, int]:
    """Write `prefix`.idx for documents whose int32 lengths are in the file `lengths`; return documents, tokens.

    Memory does not depend on their number. Raises OSError.
    """
    numpy = optional.load("numpy", "writing token files")
    documents = lengths.stat().st_size // 4
    size = numpy.dtype(token_type).itemsize
    with open(f"{prefix}.idx", "wb") as out:
        out.write(_HEADER.pack(_MAGIC, 1, TOKEN_TYPES[token_type], documents, documents + 1))
        for block in _blocks(numpy, lengths):
            out.write(block.tobytes())
        start = 0
        for block in _blocks(numpy, lengths):
            ends = numpy.cumsum(block, dtype=numpy.int64) + start
            starts = ends - block
            out.write((starts * size).tobytes())
            start = int(ends[-1])
        for first in range(0, documents + 1, _CHUNK):
            out.write(numpy.arange(first, min(first + _CHUNK, documents + 1), dtype=numpy.int64).tobytes())
    return documents, start


def check(prefix: Path, rows: int) -> PairFacts:
    """Read the whole pair at `prefix`.

    Raises SettingsError when a model with `rows` token ids could not train on it.
    """
    numpy = optional.load("numpy", _PURPOSE)
    facts = check_header(prefix)
    index, data = _files(prefix)
    lengths = _checked_lengths(numpy, index, facts)
    dtype = numpy.dtype(facts.token_type)
    tokens = int(lengths.sum(dtype=numpy.int64))
    _check_pointers(numpy, index, lengths, dtype.itemsize)
    held, expected = data.stat().st_size, tokens * dtype.itemsize
    if held != expected:
        raise _wrong_size(data, index, held, expected)
    if not tokens:
        raise SettingsError(f"{data} holds no tokens", "prepare the text again")
    return PairFacts(
        documents=facts.documents,
        tokens=tokens,
        token_type=facts.token_type,
        largest_id=_largest_id(numpy, data, dtype, rows),
    )


def check_header(prefix: Path) -> HeaderFacts:
    """Read only the ends of the pair at `prefix`: cheap at any size. Raises SettingsError for a damaged pair."""
    index, data = _files(prefix)
    for path in (index, data):
        if not path.is_file():
            raise SettingsError(f"data.path: there is no {path}", _ending_hint(prefix))
    try:
        token_type, sequences, documents = _header(index)
        _check_index_size(index, sequences, documents)
        last = sequences - 1
        (length,) = _numbers(index, _HEADER.size + 4 * last, "i", 1)
        (start,) = _numbers(index, _HEADER.size + 4 * sequences + 8 * last, "q", 1)
        held, expected = data.stat().st_size, start + length * _SIZES[token_type]
    except OSError as error:
        raise SettingsError(f"{error.filename} cannot be read: {error.strerror}", "check its permissions") from error
    if held != expected:
        raise _wrong_size(data, index, held, expected)
    return HeaderFacts(
        token_type=token_type,
        sequences=sequences,
        documents=documents - 1,
        size_bytes=held + index.stat().st_size,
    )


def count_tokens(prefix: Path) -> int:
    """The tokens of a pair, from the sizes of its files alone. Raises SettingsError for a damaged pair."""
    facts = check_header(prefix)
    return _files(prefix)[1].stat().st_size // _SIZES[facts.token_type]


def first_documents(prefix: Path, count: int, longest: int) -> Iterator[tuple[list[int], bool]]:
    """The tokens of the first documents of a pair; True for one that was cut at `longest`. Raises SettingsError."""
    facts = check_header(prefix)
    index, data = _files(prefix)
    count, size = min(count, facts.documents), _SIZES[facts.token_type]
    firsts = _numbers(index, _HEADER.size + 12 * facts.sequences, "q", count + 1)
    for first, behind in pairwise(firsts):
        lengths = _numbers(index, _HEADER.size + 4 * first, "i", behind - first)
        (start,) = _numbers(index, _HEADER.size + 4 * facts.sequences + 8 * first, "q", 1) if lengths else (0,)
        kept = min(sum(lengths), longest)
        yield list(_numbers(data, start, _LETTERS[facts.token_type], kept)), sum(lengths) * size > kept * size


def first_held_out(documents: int, validation_percent: float) -> int:
    """The first document of the validation of a pair that Megatron splits: it rounds so, and hangs on an empty side.

    (megatron/core/datasets/blended_megatron_dataset_builder.py, _build_megatron_dataset_splits, 0.19.2)
    """
    first = round(documents * (1 - validation_percent / 100))
    if not 0 < first < documents:
        raise SettingsError(
            f"data.validation_percent: {validation_percent:g} % of {documents} documents leaves one side without any",
            f"give at least {100 / max(documents, 2):.2g}, or a dataset with more documents",
        )
    return first


def tokens_before(prefix: Path, document: int) -> int:
    """The tokens of all documents of a checked pair before `document`."""
    numpy = optional.load("numpy", _PURPOSE)
    facts = check_header(prefix)
    index, _ = _files(prefix)
    (sequence,) = _numbers(index, _HEADER.size + 12 * facts.sequences + 8 * document, "q", 1)
    lengths = numpy.memmap(index, dtype=numpy.int32, mode="r", offset=_HEADER.size, shape=(facts.sequences,))
    return int(lengths[:sequence].sum(dtype=numpy.int64))


def _header(index: Path) -> tuple[str, int, int]:
    with index.open("rb") as stream:
        head = stream.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise SettingsError(f"{index} is not a Megatron index", "make it with: gptoss data prepare")
    _, version, code, sequences, documents = _HEADER.unpack(head)
    token_type = {number: name for name, number in TOKEN_TYPES.items()}.get(code)
    if version != 1 or token_type is None:
        raise SettingsError(
            f"{index} has format version {version} and token type {code}; version 1 with whole numbers is known",
            "prepare the text again",
        )
    if token_type not in _LETTERS:
        raise SettingsError(
            f"{index} holds {token_type} tokens: too few for any language model", "prepare the text again"
        )
    return token_type, sequences, documents


def _check_index_size(index: Path, sequences: int, documents: int) -> None:
    held, expected = index.stat().st_size, _HEADER.size + 12 * sequences + 8 * documents
    # Megatron's own multimodal pairs have one more byte a sequence.
    if held not in (expected, expected + sequences) or not sequences or not documents:
        raise SettingsError(f"{index} is cut off or damaged: it has {held:,} bytes; its header says {expected:,}",
                            "copy it again")  # fmt: skip


def _checked_lengths(numpy: Any, index: Path, facts: HeaderFacts) -> Any:
    sequences, documents = facts.sequences, facts.documents + 1
    lengths = numpy.memmap(index, dtype=numpy.int32, mode="r", offset=_HEADER.size, shape=(sequences,))
    if int(lengths.min()) < 0:
        raise SettingsError(f"{index} is damaged: a sequence has {int(lengths.min())} tokens", "copy it again")
    last = numpy.memmap(index, dtype=numpy.int64, mode="r", offset=_HEADER.size + 12 * sequences, shape=(documents,))
    if int(last[-1]) != sequences or int(last[0]) != 0:
        raise SettingsError(f"{index} is damaged: its documents end at {int(last[-1]):,} of {sequences:,} sequences",
                            "copy it again")  # fmt: skip
    return lengths


def _check_pointers(numpy: Any, index: Path, lengths: Any, size: int) -> None:
    offset = _HEADER.size + 4 * len(lengths)
    pointers = numpy.memmap(index, dtype=numpy.int64, mode="r", offset=offset, shape=lengths.shape)
    start = 0
    for first in range(0, len(lengths), _CHUNK):
        block = lengths[first : first + _CHUNK]
        ends = numpy.cumsum(block, dtype=numpy.int64) + start
        wrong = numpy.flatnonzero(pointers[first : first + _CHUNK] != (ends - block) * size)
        if len(wrong):
            raise SettingsError(f"{index} is damaged: sequence {first + int(wrong[0]):,} starts in the wrong place",
                                "prepare the text again")  # fmt: skip
        start = int(ends[-1])


def _largest_id(numpy: Any, data: Path, dtype: Any, rows: int) -> int:
    largest = 0
    # Read, not mapped: a map of all of it counts as memory of this process.
    with data.open("rb") as stream:
        while len(chunk := numpy.fromfile(stream, dtype=dtype, count=16 * _CHUNK)):
            low, high = int(chunk.min()), int(chunk.max())
            if low < 0 or high >= rows:
                raise SettingsError(
                    f"{data} holds the token id {high if high >= rows else low}; the model knows 0 to {rows - 1}",
                    "tokenise the text with the tokenizer of the model",
                )
            largest = max(largest, high)
    return largest


def _wrong_size(data: Path, index: Path, held: int, expected: int) -> SettingsError:
    state = "cut off" if held < expected else "longer than its index"
    return SettingsError(f"{data} is {state}: it has {held:,} bytes, {index.name} says {expected:,}", "copy both again")


def _numbers(path: Path, offset: int, letter: str, count: int) -> tuple[int, ...]:
    """`count` numbers from `offset` on; a file that ends before is damaged."""
    made = struct.Struct(f"<{count}{letter}")
    with path.open("rb") as stream:
        stream.seek(max(0, offset))
        content = stream.read(made.size)
    if offset < 0 or len(content) < made.size:
        raise SettingsError(f"{path} is damaged: it has nothing at byte {offset:,}", "copy it again")
    return made.unpack(content)


def _files(prefix: Path) -> tuple[Path, Path]:
    return Path(f"{prefix}.idx"), Path(f"{prefix}.bin")


def _ending_hint(prefix: Path) -> str:
    if prefix.suffix in (".bin", ".idx"):
        return f"leave the ending away: {prefix.with_suffix('')}"
    return "give the prefix of a .bin/.idx pair, without ending"


def _blocks(numpy: Any, lengths: Path) -> Iterator[Any]:
    with lengths.open("rb") as stream:
        while block := stream.read(4 * _CHUNK):
            yield numpy.frombuffer(block, dtype=numpy.int32)
