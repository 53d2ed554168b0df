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


class Tail:
    """The complete lines of one file, in order, each given once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._inode = (0, 0)
        self._offset = 0
        self._half = b""
        self.restarts = 0
        """How often the file was replaced or cut and is being read from its start again."""

    def read(self) -> list[bytes]:
        """The lines completed since the last call, without their line ends; at most about 1 MiB of them.

        A cut or replaced file is read again from its start. Never raises OSError: a file that
        cannot be read now may be readable at the next call.
        """
        try:
            data = self._read_chunk()
        except OSError:
            self.close()
            return []
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

    @property
    def is_behind(self) -> bool:
        """True when more can be read at once."""
        if self._descriptor is None:
            return False
        return os.fstat(self._descriptor).st_size > self._offset

    def close(self) -> None:
        """Give the file handle back; the next read opens the file again where it was left."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read_chunk(self) -> bytes:
        # The name is asked at every call: a replaced file keeps its old handle readable for ever.
        status = self.path.stat()
        inode = (status.st_dev, status.st_ino)
        if inode != self._inode or status.st_size < self._offset:
            self._start_over(inode)
        if status.st_size == self._offset:
            return b""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(self._descriptor, CHUNK_BYTES, self._offset)
        self._offset += len(data)
        return data

    def _start_over(self, inode: tuple[int, int]) -> None:
        self.close()
        if self._offset:
            self.restarts += 1
        self._inode, self._offset, self._half = inode, 0, b""
