"""Parts into whole files, in order, so that a killed preparation goes on where it was.

The output only grows. Every few seconds what has been appended is brought to the disk and noted in the
journal; on a restart everything behind the last note is cut off again, and units whose parts lie finished
in the directory are not made anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.data.job import SIDES, Counts, Result

JOURNAL = "journal.jsonl"
COMMIT_INTERVAL_S = 5.0

_ENDINGS = (".bin", ".len", ".mask")
_REJECTED = "rejected.jsonl"


@dataclass(slots=True, kw_only=True)
class Progress:
    """What has been merged."""

    units: int = 0
    counts: Counts = field(default_factory=Counts)
    hashes: dict[int, str] = field(default_factory=dict)
    """By number of the input; each unit's hash is chained to those before it."""
    lowest: tuple[float, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Progress:
        return cls(
            units=int(value["units"]),
            counts=Counts.from_json(value["counts"]),
            hashes={int(number): str(name) for number, name in value["hashes"].items()},
            lowest=tuple(value["lowest"]),
            sizes={str(name): int(size) for name, size in value["sizes"].items()},
        )


class Merger:
    """Owns the growing output files and the journal in one directory."""

    def __init__(self, directory: Path, identity: Mapping[str, Any], paths: list[str], token_bytes: int) -> None:
        """Go on with what lies in `directory` when it was begun with the same `identity`, else begin.

        `paths` names the inputs in the list of rejected records. Raises OSError.
        """
        self._directory = directory
        self._paths = paths
        self._token_bytes = token_bytes
        self.parts = directory / "parts"
        self.spool = directory / "spool"
        self.progress, self.was_begun_otherwise = self._read(identity)
        if self.progress is None or self.was_begun_otherwise:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            first = json.dumps(identity, sort_keys=True) + "\n"
            (directory / JOURNAL).write_text(first, encoding="utf-8")
            self.progress = Progress()
        else:
            # A kill may have left half a line, which would swallow the next one.
            with (directory / JOURNAL).open("ab") as journal:
                journal.write(b"\n")
        self.resumed_units = self.progress.units
        self.parts.mkdir(exist_ok=True)
        shutil.rmtree(self.spool, ignore_errors=True)
        self.spool.mkdir()
        self._files = {name: self._open(name) for name in self._names()}
        self._merged_parts: list[Path] = []
        self._disk = ThreadPoolExecutor(1)
        self._noting: Future[None] | None = None
        self._committed = time.monotonic()

    def file(self, side: str, ending: str) -> Path:
        """The whole file of one side: `.bin`, `.len` or `.mask`."""
        return self._directory / f"{side}{ending}"

    def finished(self, unit: int) -> Result | None:
        """The result of a unit whose parts lie ready."""
        try:
            value = json.loads((self.parts / f"{unit:08d}.json").read_text(encoding="utf-8"))
            result = Result.from_json(value)
            for side in SIDES:
                part = self.parts / f"{unit:08d}.{side}"
                # After a power failure a file may have its name and not its content.
                if part.with_suffix(f".{side}.len").stat().st_size != 4 * result.counts.documents[side]:
                    return None
                if part.with_suffix(f".{side}.bin").stat().st_size != self._token_bytes * result.counts.tokens[side]:
                    return None
            return result
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_done(self, unit: int) -> bool:
        """True for a unit that needs no more work."""
        return unit < self.current.units or self.finished(unit) is not None

    @property
    def current(self) -> Progress:
        assert self.progress is not None  # set by __init__ on both ways
        return self.progress

    def add(self, result: Result) -> None:
        """Append the parts of the next unit. Raises OSError."""
        now = self.current
        assert result.unit == now.units
        for side in SIDES:
            for ending in _ENDINGS:
                part = self.parts / f"{result.unit:08d}.{side}{ending}"
                if part.exists():
                    _append(part, self._files[side + ending])
                    self._merged_parts.append(part)
        self._merged_parts.append(self.parts / f"{result.unit:08d}.json")
        for number, where, why in result.rejections:
            line = {"input": self._paths[number], "where": where, "why": why}
            self._files[_REJECTED].write(json.dumps(line).encode() + b"\n")
        for number, name in result.hashes:
            chained = hashlib.blake2b((now.hashes.get(number, "") + name).encode(), digest_size=16)
            now.hashes[number] = chained.hexdigest()
        now.counts.add(result.counts)
        now.lowest = tuple(sorted({*now.lowest, *result.lowest})[:2])
        now.units += 1
        is_noted = self._noting is None or self._noting.done()
        if is_noted and time.monotonic() - self._committed >= COMMIT_INTERVAL_S:
            self.commit()

    def commit(self) -> None:
        """Bring everything to the disk and note it, beside the work. Raises OSError, also that of the time before."""
        self._wait()
        for name, file in self._files.items():
            file.flush()
            self.current.sizes[name] = file.tell()
        line = json.dumps(asdict(self.current)).encode() + b"\n"
        merged, self._merged_parts = self._merged_parts, []
        # A disk may take seconds for it, in which the tokenising processes must be fed.
        self._noting = self._disk.submit(self._note, line, merged)
        self._committed = time.monotonic()

    def close(self) -> None:
        """Release the files; nothing more is added. Raises OSError when the last commit failed."""
        try:
            self._wait()
        finally:
            self._disk.shutdown()
            for file in self._files.values():
                file.close()

    def _note(self, line: bytes, merged: list[Path]) -> None:
        for file in self._files.values():
            os.fsync(file.fileno())
        with (self._directory / JOURNAL).open("ab") as journal:
            journal.write(line)
            journal.flush()
            os.fsync(journal.fileno())
        for part in merged:
            part.unlink(missing_ok=True)

    def _wait(self) -> None:
        noting, self._noting = self._noting, None
        if noting is not None:
            noting.result()

    def _read(self, identity: Mapping[str, Any]) -> tuple[Progress | None, bool]:
        """What the journal says, and whether it belongs to other inputs or settings."""
        try:
            lines = (self._directory / JOURNAL).read_bytes().split(b"\n")
            begun = json.loads(lines[0])
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None, False
        if begun != json.loads(json.dumps(identity)):
            return None, True
        # The last line may be half written; the one before it is whole.
        for line in reversed(lines[1:]):
            try:
                return Progress.from_json(json.loads(line)), False
            except (ValueError, KeyError, TypeError):
                continue
        return Progress(), False

    def _names(self) -> list[str]:
        return [side + ending for side in SIDES for ending in _ENDINGS] + [_REJECTED]

    def _open(self, name: str) -> Any:
        path = self._directory / name
        path.touch()
        # Not for appending only: into such a file the kernel copies nothing.
        file = path.open("r+b")
        file.truncate(self.current.sizes.get(name, 0))
        file.seek(0, os.SEEK_END)
        return file


def _append(part: Path, target: Any) -> None:
    """The content of `part` behind what `target` holds; the kernel copies, or shares the blocks where it can."""
    target.flush()
    with part.open("rb") as stream:
        left = os.fstat(stream.fileno()).st_size
        try:
            while left > 0 and (copied := os.copy_file_range(stream.fileno(), target.fileno(), left)):
                left -= copied
        except OSError as error:
            # Not every file system can, and some only within one.
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
                raise
        target.seek(0, os.SEEK_END)
        shutil.copyfileobj(stream, target, 1 << 20)
