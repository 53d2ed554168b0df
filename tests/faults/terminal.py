"""A program in a terminal of its own, driven as a person would: keys in, what it writes out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

from tests.limits import LIMIT_S

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


class Terminal:
    """30 rows of 100 columns. Close it: a program that is left would be a second failure."""

    def __init__(self, words: list[str], environment: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = subprocess.Popen(
            words,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"} | (environment or {}),
        )
        os.close(theirs)
        self._seen = b""

    def press(self, keys: str) -> None:
        """Type `keys`. What was written until now does not count for `wait_for` any more."""
        self._seen = b""
        os.write(self._ours, keys.encode())

    def wait_for(self, text: str, limit_s: float = LIMIT_S) -> None:
        """Wait until it has written `text` since the last key. Raises AssertionError.

        Blanks do not count: a screen that paints no more than it must leaves those out that are there already.
        """
        deadline = time.monotonic() + limit_s
        while b"".join(text.encode().split()) not in b"".join(self.written.split()):
            assert time.monotonic() < deadline, f"{text!r} did not appear: {self.written[-3000:]!r}"
            assert self.process.poll() is None, f"it ended before {text!r} appeared: {self.written[-3000:]!r}"
            self._read(0.1)

    def wait_end(self, limit_s: float = LIMIT_S) -> int:
        """Wait until the program has ended; return its exit code. Raises AssertionError."""
        deadline = time.monotonic() + limit_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it did not end: {self.written[-3000:]!r}"
            self._read(0.1)
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait(LIMIT_S)
        os.close(self._ours)

    @property
    def written(self) -> bytes:
        """Everything since the last key, without the sequences that move the cursor or choose a colour."""
        return _ESCAPES.sub(b"", self._seen)

    def _read(self, patience_s: float) -> None:
        if select.select([self._ours], [], [], patience_s)[0]:
            try:
                self._seen += os.read(self._ours, 65536)
            except OSError:  # the other side is closed
                time.sleep(patience_s)
