"""What is in the data, before anything is done with it: an estimate within seconds, or every record on request."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from engine.data import chats, harmony, records, sampling, splits, tokens
from engine.data.estimates import Estimate, Estimates, Window, epochs, histogram, length_facts
from engine.data.harmony import Style
from engine.data.records import Messages, Rejection
from engine.data.shape import TEXT, Shape, Unusable, detect
from engine.data.sources import SourceFile, total_bytes
from engine.data.units import Part
from engine.data.vocabulary import Vocabulary
from engine.errors import SettingsError

EXACT_BELOW_BYTES = 16_000_000
"""Inputs smaller than this are read whole anyway."""

_WINDOWS = 48
_WINDOW_BYTES = 256 << 10
_TOKENISED_BYTES = {tokens.GIGATOKEN: 12_000_000, tokens.TOKENIZERS: 2_000_000}
_PEEKED = 100
_SAMPLES, _SAMPLE_LETTERS = 3, 300
_PROBLEMS = 20
_MAX_DIGESTS = 5_000_000
_BATCH = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found."""

    path: str
    formats: dict[str, int]
    """Number of files of each format, compression included (`jsonl.gz`)."""
    files: int
    size_bytes: int
    kind: str
    columns: tuple[str, ...]
    is_exact: bool
    records: Estimate
    text_bytes: Estimate
    tokens: Estimate | None = None
    """None without a tokenizer."""
    encoder: str = ""
    length_unit: str = "bytes"
    """What the lengths are counted in: tokens where there is a tokenizer."""
    lengths: dict[str, float] = field(default_factory=dict)
    """Minimum, median, mean, 90 %, 99 % and maximum of a record."""
    histogram: tuple[tuple[int, int], ...] = ()
    """Upper bound (a power of two) and number of records seen up to it."""
    over_sequence_length: float | None = None
    """The share of records longer than one sample; None without a tokenizer or a sequence length."""
    sequence_length: int = 0
    seen_records: int = 0
    empty: int = 0
    duplicates: int = 0
    duplicates_of_first: int = 0
    """Among how many records duplicates were looked for."""
    rejected: int = 0
    problems: tuple[str, ...] = ()
    """Where and why records cannot be used; the first 20."""
    with_control_tokens: int = 0
    trained_share: float | None = None
    """Of a chat's tokens, how many the model learns to write; None for text and without a tokenizer."""
    samples: tuple[str, ...] = ()
    epochs: Estimate | None = None
    """How often the planned training goes over the data; None without a plan."""
    prepare_s: float | None = None
    """About how long preparing takes on this machine."""
    notices: tuple[str, ...] = ()


@dataclass(slots=True)
class _Tally:
    lengths: list[int] = field(default_factory=list)
    byte_lengths: list[int] = field(default_factory=list)
    digests: set[bytes] = field(default_factory=set)
    digested: int = 0
    duplicates: int = 0
    empty: int = 0
    rejected: int = 0
    with_control_tokens: int = 0
    trained: int = 0
    problems: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    encode_s: float = 0.0
    tokenised_bytes: int = 0


type Document = bytes | Messages
type Tell = Callable[[int, int], None]
"""Told the bytes done and the bytes in all."""


def shape_of(files: Sequence[SourceFile], column: str = "") -> Shape:
    """What the records of `files` hold, from the first ones. Raises SettingsError."""
    first = next((file for file in files if not (file.is_lines and file.format == "text")), None)
    if first is None:
        return Shape()
    return detect(records.peek(first, _PEEKED), first.path, column)


def inspect(
    path: str,
    files: Sequence[SourceFile],
    shape: Shape,
    vocabulary: Vocabulary | None = None,
    *,
    is_exact: bool = False,
    sequence_length: int = 0,
    planned_tokens: int = 0,
    workers: int = 1,
    tell: Tell = lambda done, total: None,
) -> Inspection:
    """Look at `files`. With `vocabulary` lengths are tokens; `planned_tokens` gives epochs. Raises SettingsError."""
    encoder, notice = _encoder(shape, vocabulary)
    is_exact = is_exact or (total_bytes(list(files)) <= EXACT_BELOW_BYTES and not any(f.compression for f in files))
    tally = _Tally()
    windows = _look(files, shape, encoder, tally, is_exact, tell)
    found = Estimates(windows, total_bytes(list(files)), is_exact)
    if not any(file.is_lines for file in files):
        # Tables say how many rows they have.
        found.records = Estimate.counted(sum(map(records.table_rows, files)))
    return Inspection(
        path=path,
        formats=_formats(files),
        files=len(files),
        size_bytes=total_bytes(list(files)),
        kind=shape.kind,
        columns=shape.columns,
        is_exact=is_exact,
        records=found.records,
        text_bytes=found.text_bytes,
        tokens=found.tokens if encoder else None,
        encoder=encoder.name if encoder else "",
        length_unit="tokens" if encoder else "bytes",
        lengths=length_facts(tally.lengths if encoder else tally.byte_lengths),
        histogram=histogram(tally.lengths if encoder else tally.byte_lengths),
        over_sequence_length=_share_over(tally.lengths, sequence_length) if encoder and sequence_length else None,
        sequence_length=sequence_length,
        seen_records=sum(window.records for window in windows),
        empty=tally.empty,
        duplicates=tally.duplicates,
        duplicates_of_first=tally.digested,
        rejected=tally.rejected,
        problems=tuple(tally.problems),
        with_control_tokens=tally.with_control_tokens,
        trained_share=tally.trained / sum(tally.lengths) if tally.trained and shape.kind != TEXT else None,
        samples=tuple(tally.samples),
        epochs=epochs(found.tokens, planned_tokens) if encoder and planned_tokens else None,
        prepare_s=_time_to_prepare(tally, found.text_bytes.value, workers) if encoder else None,
        notices=(notice,) if notice else (),
    )


class _ChatEncoder:
    """Chats as the tokens that `prepare` would make of them."""

    name = tokens.TOKENIZERS

    def __init__(self, tokenizer_json: str) -> None:
        self._tokenizer = chats.tokenizer(tokenizer_json, Style())

    def lengths(self, batch: Sequence[Document], tally: _Tally) -> list[int]:
        """The tokens of each chat; those that are learnt are counted."""
        found = []
        for messages in batch:
            try:
                chat = self._tokenizer.encode(messages)  # type: ignore[arg-type] # `_usable` gave messages
            except Unusable:
                # Half a surrogate pair, or what only this tokenizer's template refuses.
                tally.rejected += 1
                continue
            found.append(len(chat))
            tally.trained += sum(chat.mask)
        return found


class _TextEncoder:
    """Texts as tokens."""

    def __init__(self, encoder: tokens.Encoder, special: frozenset[int]) -> None:
        self.name = encoder.name
        self._encoder = encoder
        self._special = special

    def lengths(self, batch: Sequence[Document], tally: _Tally) -> list[int]:
        """The tokens of each text; those with a control token are counted."""
        ids, lengths = self._encoder.encode(batch)  # type: ignore[arg-type] # `_usable` gave bytes
        sizes: list[int] = lengths.tolist()
        if self._special and not self._special.isdisjoint(ids.tolist()):
            tally.with_control_tokens += _marked(ids.tolist(), sizes, self._special)
        return sizes


type _Encoder = _ChatEncoder | _TextEncoder


def _encoder(shape: Shape, vocabulary: Vocabulary | None) -> tuple[_Encoder | None, str]:
    """What turns records into tokens, and what a person should know about it."""
    if vocabulary is None:
        return None, ""
    if shape.kind != TEXT:
        try:
            return _ChatEncoder(vocabulary.path), ""
        except SettingsError as error:
            return None, f"lengths are in bytes: {error.message}"
    encoder, notice = tokens.fastest(vocabulary.path)
    return _TextEncoder(encoder, frozenset(vocabulary.special.values())), notice


def _look(
    files: Sequence[SourceFile],
    shape: Shape,
    encoder: _Encoder | None,
    tally: _Tally,
    is_exact: bool,
    tell: Tell,
) -> list[Window]:
    parts = _all_parts(files) if is_exact else sampling.windows(files, _WINDOWS, _WINDOW_BYTES)
    budget = math.inf if is_exact or not encoder else _TOKENISED_BYTES[encoder.name] / max(1, len(parts))
    windows = []
    for number, part in enumerate(parts):
        tell(number, len(parts))
        window = Window()
        limit = None if is_exact else _WINDOW_BYTES
        for batch in _batches(_usable(part, shape, limit, window, tally)):
            _count(batch, window, tally, encoder, budget)
        windows.append(window)
    tell(len(parts), len(parts))
    return windows


def _all_parts(files: Sequence[SourceFile]) -> list[Part]:
    found = []
    for number, file in enumerate(files):
        if file.is_lines and not file.compression:
            step = 8 * sampling.WINDOW_BYTES
            ends = range(step, file.size_bytes + step, step)
            found += [Part(file=file, number=number, start=end - step, end=min(end, file.size_bytes)) for end in ends]
        else:
            found.append(Part(file=file, number=number))
    return found


def _usable(part: Part, shape: Shape, limit: int | None, window: Window, tally: _Tally) -> Iterator[Document]:
    """The documents of a window; the others are counted."""
    held, first, last = 0, -1, 0
    for position, found in records.documents(part.file, shape, part.start, part.end):
        first = position if first < 0 else first
        if limit is not None and held >= limit:
            last = position
            break
        window.records += 1
        document = _checked(found)
        if isinstance(document, Rejection):
            tally.rejected += 1
            if len(tally.problems) < _PROBLEMS:
                tally.problems.append(f"{records.place(part.file, position)}: {document.reason}")
            continue
        held += len(_as_text(document))
        if document:
            yield document
        else:
            tally.empty += 1
    # How much of the input the window stands for: up to the record after its last one.
    if last and part.file.is_lines:
        window.raw_bytes = int((last - first) / (records.expansion(part.file) if part.file.compression else 1.0))
    elif part.file.is_lines and not part.file.compression and part.end is not None:
        window.raw_bytes = part.end - part.start
    elif last:
        window.raw_bytes = int(part.file.size_bytes * (last - first) / max(1, records.table_rows(part.file)))
    else:
        window.raw_bytes = _whole_part(part)


def _whole_part(part: Part) -> int:
    if part.file.is_lines or part.end is None:
        return part.file.size_bytes
    sizes = records.table_parts(part.file)
    return int(part.file.size_bytes * sum(sizes[part.start : part.end]) / max(1, sum(sizes)))


def _count(
    batch: list[Document],
    window: Window,
    tally: _Tally,
    encoder: _Encoder | None,
    budget: float,
) -> None:
    texts = list(map(_as_text, batch))
    size = sum(map(len, texts))
    window.text_bytes += size
    tally.byte_lengths += map(len, texts)
    for document in texts:
        if len(tally.samples) < _SAMPLES:
            tally.samples.append(document[: 4 * _SAMPLE_LETTERS].decode(errors="ignore")[:_SAMPLE_LETTERS])
        if len(tally.digests) < _MAX_DIGESTS:
            name = splits.digest(document)
            tally.duplicates += name in tally.digests
            tally.digests.add(name)
            tally.digested += 1
    if encoder is None or window.tokenised_bytes > budget:
        return
    started = time.perf_counter()
    sizes = encoder.lengths(batch, tally)
    tally.encode_s += time.perf_counter() - started
    tally.lengths += sizes
    window.tokens += sum(sizes)
    window.tokenised_bytes += size
    tally.tokenised_bytes += size


def _marked(ids: list[int], sizes: list[int], special: frozenset[int]) -> int:
    start = marked = 0
    for size in sizes:
        marked += not special.isdisjoint(ids[start : start + size])
        start += size
    return marked


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    held: list[Document] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(_as_text(document))
        if len(held) >= _BATCH or size >= sampling.WINDOW_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _checked(found: Document | Rejection) -> Document | Rejection:
    """A chat that `prepare` would refuse is a rejection."""
    if isinstance(found, list):
        try:
            harmony.render(found, Style())
        except Unusable as error:
            return Rejection(str(error))
    return found


def _as_text(document: Document) -> bytes:
    return document if isinstance(document, bytes) else sampling.text_of_chat(document)


def _formats(files: Sequence[SourceFile]) -> dict[str, int]:
    found: dict[str, int] = {}
    for file in files:
        name = file.format + (f".{file.compression}" if file.compression else "")
        found[name] = found.get(name, 0) + 1
    return found


def _share_over(lengths: list[int], sequence_length: int) -> float:
    return sum(length > sequence_length for length in lengths) / len(lengths) if lengths else 0.0


def _time_to_prepare(tally: _Tally, text_bytes: float, workers: int) -> float | None:
    if not tally.encode_s or not tally.tokenised_bytes:
        return None
    # Loading the tokenizer, and a third more than tokenising for reading, hashing and writing.
    return 3.0 + 1.33 * text_bytes * tally.encode_s / tally.tokenised_bytes / max(1, workers)
