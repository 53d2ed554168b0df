"""Follow a file that another process appends to. Polled: that works over NFS and costs next to nothing.

Knows lines, not what is in them. A file that does not exist yet is an empty one.
"""

from __future__ import annotations

import os
from pathlib import Path

CHUNK_BYTES = 1 << 20
"""Read at most this much in one call, so that attaching to a long run stays responsive."""

LONGEST_LINE_BYTES = 1 << 20
"""A line longer than this is cut: it is damage, and must not fill the memory."""


class Growing:
    """What is appended to one file, as bytes; a cut or replaced file is read again from its start."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._inode = (0, 0)
        self._offset = 0
        self.restarts = 0
        """How often the file was replaced or cut and is being read from its start again."""
        self.is_behind = False
        """True when more could be read at once at the last call."""

    def read(self) -> bytes:
        """At most 1 MiB that came since the last call.

        Never raises OSError: a file that cannot be read now may be readable at the next call.
        """
        try:
            return self._read()
        except OSError:
            self.close()
            self.is_behind = False
            return b""

    def close(self) -> None:
        """Give the file handle back; the next read opens the file again where it was left."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read(self) -> bytes:
        # The name is asked at every call: a replaced file keeps its old handle readable for ever.
        status = self.path.stat()
        inode = (status.st_dev, status.st_ino)
        if inode != self._inode or status.st_size < self._offset:
            self._start_over(inode)
        data = b""
        if status.st_size > self._offset:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(self._descriptor, CHUNK_BYTES, self._offset)
            self._offset += len(data)
        self.is_behind = bool(data) and status.st_size > self._offset
        return data

    def _start_over(self, inode: tuple[int, int]) -> None:
        self.close()
        if self._offset:
            self.restarts += 1
        self._inode, self._offset = inode, 0


class Tail:
    """The complete lines of one file, in order, each given once."""

    def __init__(self, path: Path) -> None:
        self._file = Growing(path)
        self._half = b""
        self._restarts = 0

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def restarts(self) -> int:
        """How often the file was replaced or cut and is being read from its start again."""
        return self._file.restarts

    @property
    def is_behind(self) -> bool:
        """True when more could be read at once at the last call."""
        return self._file.is_behind

    @property
    def unfinished(self) -> bytes:
        """What came behind the last line end: a line that is still written, or that never will be ended."""
        return self._half

    def read(self) -> list[bytes]:
        """The lines completed since the last call, without their line ends; at most about 1 MiB of them.

        A cut or replaced file is read again from its start. Never raises OSError: a file that
        cannot be read now may be readable at the next call.
        """
        data = self._file.read()
        if self._file.restarts != self._restarts:
            self._restarts, self._half = self._file.restarts, b""
        if not data:
            return []
        lines = (self._half + data).split(b"\n")
        self._half = lines.pop()[-LONGEST_LINE_BYTES:]
        return [line.removesuffix(b"\r") for line in lines]

    def read_all(self) -> list[bytes]:
        """Every complete line there is now; for files that are known to be small."""
        lines = self.read()
        while self.is_behind:
            lines += self.read()
        return lines

    def close(self) -> None:
        """Give the file handle back; the next read opens the file again where it was left."""
        self._file.close()
