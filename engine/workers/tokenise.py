"""Tokenising processes: units of input in, parts of the .bin out. See `engine.data.pool` for who starts them.

Their memory depends on the longest record, not on the input; one whose caches have grown is replaced.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from engine.data import job as protocol
from engine.data import records, splits, tokens
from engine.data.job import Counts, Job, Result
from engine.data.records import Rejection
from engine.data.shape import TEXT
from engine.data.sources import SourceFile
from engine.data.units import Part, Unit
from engine.errors import EngineError, SettingsError
from engine.workers import compare

_BATCH_BYTES = {tokens.GIGATOKEN: 2 << 20, tokens.TOKENIZERS: 1 << 18}
_BATCH_DOCUMENTS = 4096


def main() -> int:
    """Load the tokenizer, then fork a process for every pair of pipes that comes through the socket."""
    job = Job.from_json(json.load(sys.stdin))
    control = socket.socket(fileno=int(sys.argv[1]))
    try:
        worker = _make(job)
    except (EngineError, tokens.UnknownTokenizer) as error:
        return _refuse(job, control, error)
    # Nothing that was made so far has to be looked at again in every child.
    gc.freeze()
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        _reap(os.WNOHANG)
        if not descriptors:
            break
        if os.fork() == 0:
            control.close()
            os._exit(_serve(worker, *descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
    _reap(0)
    return 0


def _serve(worker: TextWorker, from_parent: int, to_parent: int) -> int:
    """A child's whole life: answer until the input ends."""
    try:
        with open(from_parent, "rb") as units, open(to_parent, "wb", buffering=0) as answers:
            for line in units:
                answers.write(json.dumps(_answer(worker, json.loads(line))).encode() + b"\n")
    except BrokenPipeError:
        return 0  # who asked is gone
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _answer(worker: TextWorker, question: dict[str, Any]) -> dict[str, Any]:
    try:
        if "compare" in question:
            files = [SourceFile(**file) for file in question["compare"]]
            return {"difference": compare.difference(worker.job, worker.encoder, files)}
        return {"result": worker.carry_out(Unit.from_json(question)).to_json()}
    except EngineError as error:
        return {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
    except OSError as error:
        return {"error": str(error), "hint": "", "kind": "OSError", "errno": error.errno}


def _refuse(job: Job, control: socket.socket, error: EngineError | tokens.UnknownTokenizer) -> int:
    """Say why nothing can be tokenised, where it will be looked for."""
    if isinstance(error, EngineError):
        said = {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
        print(json.dumps(said), file=sys.stderr, flush=True)
        return 1
    # gigatoken cannot carry out this tokenizer: the first answer of any child is that difference.
    while descriptors := socket.recv_fds(control, 1, 2)[1]:
        os.close(descriptors[0])
        with open(descriptors[1], "wb") as answers:
            answers.write(json.dumps({"difference": str(error)}).encode() + b"\n")
    return 0


def _reap(how: int) -> None:
    """Take the ended children away; one that was killed is named on stderr."""
    try:
        while (ended := os.waitpid(-1, how))[0]:
            if os.WIFSIGNALED(ended[1]):
                print(json.dumps({"signal": os.WTERMSIG(ended[1])}), file=sys.stderr, flush=True)
    except ChildProcessError:
        return


def _make(job: Job) -> TextWorker:
    if job.shape.kind == TEXT:
        return TextWorker(job)
    from engine.workers.chat import ChatWorker

    return ChatWorker(job)


class Side:
    """The part files of one side of the split."""

    def __init__(self, directory: Path, unit: int, name: str, has_masks: bool) -> None:
        stem = directory / f"{unit:08d}.{name}"
        self.tokens = open(f"{stem}.bin", "wb")  # noqa: SIM115
        self.lengths = open(f"{stem}.len", "wb")  # noqa: SIM115
        self.masks = open(f"{stem}.mask", "wb") if has_masks else None  # noqa: SIM115

    def close(self) -> None:
        for file in (self.tokens, self.lengths, self.masks):
            if file:
                file.close()


class TextWorker:
    """Turns documents of text into tokens."""

    has_masks = False

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dtype: Any = numpy.dtype(job.token_type)
        self.load()
        self._special = numpy.array(sorted(job.special_ids), dtype=numpy.uint32)

    def load(self) -> None:
        """Load the tokenizer. Raises SettingsError, UnknownTokenizer."""
        fast = self.job.encoder == tokens.GIGATOKEN
        kind = tokens.Gigatoken if fast else tokens.Tokenizers
        self.encoder: tokens.Encoder = kind(self.job.tokenizer)
        # What is imported at the first use is imported once, before the children are forked.
        self.encoder.encode([b"a"])

    def carry_out(self, unit: Unit) -> Result:
        """Write the parts of `unit`. Raises SettingsError, OSError."""
        directory = Path(self.job.parts)
        self.counts, self.lowest = Counts(), set[float]()
        rejections: list[tuple[int, str, str]] = []
        hashes: list[tuple[int, str]] = []
        self.sides = {name: Side(directory, unit.number, name, self.has_masks) for name in protocol.SIDES}
        try:
            for part in unit.parts:
                digest = hashlib.blake2b(digest_size=splits.DIGEST_BYTES)
                for batch in _batches(self._documents(part, rejections), _BATCH_BYTES[self.job.encoder]):
                    names = self.write(batch)
                    digest.update(b"".join(names))
                hashes.append((part.number, digest.hexdigest()))
        finally:
            for side in self.sides.values():
                side.close()
        result = Result(
            unit=unit.number,
            counts=self.counts,
            hashes=tuple(hashes),
            lowest=tuple(sorted(self.lowest)[:2]),
            rejections=tuple(rejections[: protocol.MAX_REPORTED]),
            rss_mib=_rss_mib(),
        )
        # Last: a unit with this file is done, also for a later process. The sizes of its parts are compared then, so
        # that nothing has to wait for the disk here.
        made = directory / f".{unit.number:08d}.json"
        made.write_text(json.dumps(result.to_json()), encoding="utf-8")
        made.replace(directory / f"{unit.number:08d}.json")
        return result

    def write(self, documents: Sequence[Any]) -> list[bytes]:
        """Append `documents` to their sides; return their digests."""
        names = [splits.digest(document) for document in documents]
        flat, lengths = self.encoder.encode(documents)
        ends: Any = numpy.cumsum(lengths)
        if len(self._special):
            # Their ids are the highest of most vocabularies: few tokens have to be looked up.
            high = numpy.flatnonzero(flat >= self._special[0])
            marked = high[numpy.isin(flat[high], self._special)]
            self.counts.with_control_tokens += len(numpy.unique(numpy.searchsorted(ends, marked, side="right")))
        ids = numpy.insert(flat, ends, self.job.end_of_document).astype(self.dtype)
        self.append(names, ids, lengths + 1)
        self.counts.text_bytes += sum(map(len, documents))
        return names

    def append(self, names: list[bytes], ids: Any, lengths: Any, masks: Any = None) -> None:
        """Write tokens (and masks) of documents called `names` to the sides that their names choose."""
        shares = [splits.share(name) for name in names]
        self.lowest = set(sorted({*self.lowest, *shares})[:2])
        held_out = numpy.array(shares) < self.job.validation_share
        if self.job.halves_at:
            held_out = numpy.arange(len(names)) % 2 == 1
        for name, chosen in ((protocol.TRAIN, ~held_out), (protocol.VALIDATION, held_out)):
            count = int(chosen.sum())
            if not count:
                continue
            # Most often all of a batch goes to one side: nothing is copied then.
            kept: Any = slice(None) if count == len(names) else numpy.repeat(chosen, lengths)
            side, sizes = self.sides[name], lengths[chosen]
            side.tokens.write(numpy.ascontiguousarray(ids[kept]).data)
            side.lengths.write(sizes.astype(numpy.int32).tobytes())
            tokens_written = trained = int(sizes.sum())
            if masks is not None and side.masks:
                side.masks.write(masks[kept].astype(numpy.uint8).tobytes())
                trained = int(masks[kept].sum())
            self.counts.documents[name] += count
            self.counts.tokens[name] += tokens_written
            self.counts.trained[name] += trained

    def reject(self, part: Part, where: str, why: str, rejections: list[tuple[int, str, str]]) -> None:
        """Count a record that cannot be used. Raises SettingsError unless such are skipped."""
        if self.job.on_bad_record != protocol.SKIP:
            raise SettingsError(
                f"{where}: {why}",
                "mend it, or leave such records out, counted and listed: --skip-bad, in a run data.bad_records=skip",
            )
        self.counts.rejected += 1
        if len(rejections) < protocol.MAX_REPORTED:
            rejections.append((part.number, where, why))

    def _documents(self, part: Part, rejections: list[tuple[int, str, str]]) -> Iterator[Any]:
        for position, found in records.documents(part.file, self.job.shape, part.start, part.end):
            if isinstance(found, Rejection):
                self.reject(part, place(part, position), found.reason, rejections)
            elif isinstance(found, bytes) and not found:
                self.counts.empty += 1
            elif self.job.halves_at and isinstance(found, bytes):
                yield from halves(found, self.job.halves_at)
            else:
                yield from self.accept(part, position, found, rejections)

    def accept(self, part: Part, position: int, found: Any, rejections: list[tuple[int, str, str]]) -> Iterator[Any]:
        """What `write` takes for the record `found`."""
        yield found


def _batches(documents: Iterator[Any], limit: int) -> Iterator[list[Any]]:
    held: list[Any] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document)
        if size >= limit or len(held) >= _BATCH_DOCUMENTS:
            yield held
            held, size = [], 0
    if held:
        yield held


def halves(text: bytes, at: float) -> tuple[bytes, bytes]:
    """The only document as two, cut at a line end where there is one. Raises SettingsError for a single letter."""
    middle = min(max(int(len(text) * (1 - at)), 1), len(text) - 1)
    line_end = text.rfind(b"\n", 0, middle) + 1
    if line_end:
        return text[:line_end], text[line_end:]
    # A letter of several bytes stays whole: cut before it, or behind the first one.
    while middle and text[middle] & 0xC0 == 0x80:
        middle -= 1
    middle = middle or next((at for at in range(1, len(text)) if text[at] & 0xC0 != 0x80), 0)
    if not middle:
        raise SettingsError("the text is a single letter", "give more text")
    return text[:middle], text[middle:]


def place(part: Part, position: int) -> str:
    """Where a record is, for people."""
    if part.is_spool:
        return f"input {part.number + 1}, {records.place(part.file, position)} of what starts at byte {part.origin:,}"
    return records.place(part.file, position)


def _rss_mib() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 >> 20


if __name__ == "__main__":
    sys.exit(main())
