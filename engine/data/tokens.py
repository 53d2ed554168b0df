"""Documents into token ids, by gigatoken where it gives equal tokens and by `tokenizers` where not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from engine.data import optional
from engine.errors import SettingsError

GIGATOKEN, TOKENIZERS = "gigatoken", "tokenizers"

_PURPOSE = "turning text into tokens"
MISSING = f"gigatoken is not installed: about ten times slower; uv pip install '{optional.REQUIREMENTS['gigatoken']}'"


class Encoder(Protocol):
    """Turns documents into token ids; adds nothing at either end."""

    name: str

    def encode(self, documents: Sequence[bytes]) -> tuple[Any, Any]:
        """All token ids in one numpy array, and the number of tokens of each document."""
        ...


class UnknownTokenizer(Exception):
    """gigatoken cannot carry out this tokenizer."""


class Gigatoken:
    """The fast one. Its caches grow without bound: a process that has used it long is replaced."""

    name = GIGATOKEN

    def __init__(self, tokenizer_json: str) -> None:
        self._numpy = optional.load("numpy", _PURPOSE)
        library = optional.load("gigatoken", "fast tokenising")
        with open(tokenizer_json, "rb") as stream:
            content = stream.read()
        try:
            self._tokenizer = library.Tokenizer.from_json(content)
        except (RuntimeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            raise UnknownTokenizer(f"gigatoken does not know this tokenizer: {first[:120]}") from error

    def encode(self, documents: Sequence[bytes]) -> tuple[Any, Any]:
        encoded = self._tokenizer.encode_batch(list(documents), parallel=False).layout
        offsets = self._numpy.asarray(encoded.offsets.data)
        return self._numpy.asarray(encoded.content.data)[offsets[0] : offsets[-1]], self._numpy.diff(offsets)


class Tokenizers:
    """The reference: the library behind every Hugging Face fast tokenizer."""

    name = TOKENIZERS

    def __init__(self, tokenizer_json: str, plain: bool = False) -> None:
        """With `plain`, control tokens that are spelt out in a text stay text."""
        # Every core has its own process already.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        library = optional.load("tokenizers", _PURPOSE)
        try:
            self._tokenizer = library.Tokenizer.from_file(tokenizer_json)
        except Exception as error:  # the library has no class of its own for what it refuses
            raise SettingsError(f"{tokenizer_json} cannot be used: {error}",
                                "give a Hugging Face tokenizer.json") from error  # fmt: skip
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = plain

    def encode(self, documents: Sequence[bytes]) -> tuple[Any, Any]:
        numpy = optional.load("numpy", _PURPOSE)
        texts = [document.decode() for document in documents]
        ids = [one.ids for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        lengths = numpy.fromiter(map(len, ids), dtype=numpy.int64, count=len(ids))
        flat = numpy.fromiter((i for one in ids for i in one), dtype=numpy.uint32, count=int(lengths.sum()))
        return flat, lengths

    def encode_text(self, text: str) -> list[int]:
        """The ids of one text. Raises UnicodeEncodeError for half a surrogate pair."""
        text.encode()  # the library's own error would not say what is wrong
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of one text, and which of its letters each stands for. Raises UnicodeEncodeError."""
        text.encode()
        made = self._tokenizer.encode(text, add_special_tokens=False)
        return made.ids, made.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text


def fastest(tokenizer_json: str) -> tuple[Encoder, str]:
    """The fastest encoder that can be had, and why it is not gigatoken (empty when it is)."""
    if not optional.version("gigatoken"):
        return Tokenizers(tokenizer_json), MISSING
    try:
        return Gigatoken(tokenizer_json), ""
    except UnknownTokenizer as error:
        return Tokenizers(tokenizer_json), str(error)


def first_difference(one: Encoder, other: Encoder, documents: Sequence[bytes]) -> int | None:
    """The first document that the two encode differently, or None."""
    (ids, lengths), (other_ids, other_lengths) = one.encode(documents), other.encode(documents)
    start = 0
    for number, (length, other_length) in enumerate(zip(lengths.tolist(), other_lengths.tolist(), strict=True)):
        end = start + length
        if length != other_length or (ids[start:end] != other_ids[start:end]).any():
            return number
        start = end
    return None
