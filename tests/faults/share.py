"""A network share for the tests: a FUSE file system over a directory, which can be silent, slow or broken.

A silent share is a stopped server: whoever asks it waits for as long as that lasts, as on a hard NFS mount, and
like there nothing but SIGKILL ends the waiting. `python -m tests.faults.share SOURCE MOUNT CONTROL` is the server.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest

from tests.limits import LIMIT_S

READ = {"0", "275", "63", "76"}
"""Numbers of the system calls in which an idle server waits for a request: read and splice, on x86-64 and arm64."""


class Share:
    """A mounted share, from the side of those who run it."""

    def __init__(self, directory: Path) -> None:
        self.source, self.path, self._control = (directory / name for name in ("source", "share", "control.json"))
        self._log = directory / "server.log"
        for place in (self.source, self.path):
            place.mkdir(parents=True)
        self._order({})
        self.mount()

    def mount(self) -> None:
        """Start the server. Skips the test where nobody may mount."""
        words = [sys.executable, "-m", "tests.faults.share", *map(str, (self.source, self.path, self._control))]
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(words, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
        deadline = time.monotonic() + LIMIT_S
        while not os.path.ismount(self.path):
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.close()
                pytest.skip(f"this machine lets nobody mount FUSE: {self._log.read_text()[-500:]}")
            time.sleep(0.01)

    def slow_down(self, seconds: float) -> None:
        """Let every call take so much longer."""
        self._order({"delay_s": seconds})

    def break_down(self, number: int) -> None:
        """Answer every call with an error (ESTALE, EIO)."""
        self._order({"error": number})

    def refuse_writing(self, number: int) -> None:
        """Answer every call that needs room with an error (EDQUOT)."""
        self._order({"write_error": number})

    def mend(self) -> None:
        self._order({})

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Answer nobody meanwhile."""
        self.fall_silent()
        try:
            yield
        finally:
            self._server.send_signal(signal.SIGCONT)

    def fall_silent(self) -> None:
        # A request in the server's hands cannot be given up even by a killed process: stop it between two.
        deadline = time.monotonic() + LIMIT_S
        while True:
            self._server.send_signal(signal.SIGSTOP)
            while _state_of(self._server.pid) != "T":
                time.sleep(0.001)
            call = Path(f"/proc/{self._server.pid}/syscall").read_text().split()[0]
            if call in READ:
                return
            assert time.monotonic() < deadline, f"the share is never idle: it is in system call {call}"
            self._server.send_signal(signal.SIGCONT)
            time.sleep(0.005)

    def close(self) -> None:
        """End the server and unmount; whoever still waits for it gets an error."""
        self._server.kill()
        self._server.wait()
        subprocess.run(["umount", "--lazy", str(self.path)], stderr=subprocess.DEVNULL)

    def _order(self, order: dict[str, Any]) -> None:
        half = self._control.with_suffix(".half")
        half.write_text(json.dumps(order))
        half.rename(self._control)


def open_share(directory: Path) -> Share:
    """A share below `directory`; skips the test where there can be none."""
    if not os.access("/dev/fuse", os.W_OK) or os.geteuid():
        pytest.skip("mounting a share takes root and /dev/fuse")
    if importlib.util.find_spec("mfusepy") is None or not find_library("fuse3"):
        pytest.skip("a share takes mfusepy and libfuse3 (apt-get install fuse3)")
    return Share(directory)


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def serve(source: str, mount: str, control: str) -> None:
    """Pass everything on to the directory `source`, until it is unmounted."""
    import mfusepy

    def place(path: str, *, needs_room: bool = False) -> str:
        order = json.loads(Path(control).read_text())
        time.sleep(order.get("delay_s", 0))
        if number := order.get("error") or (needs_room and order.get("write_error")):
            raise OSError(number, os.strerror(number))
        return source + path

    class Server(Passing, mfusepy.Operations):
        use_ns = True

    Server.place = staticmethod(place)
    try:
        mfusepy.FUSE(Server(), mount, foreground=True, nothreads=True, fsname="gptoss-test-share")
    except RuntimeError as error:
        sys.exit(str(error))


class Passing:
    """The calls that a run makes, by their FUSE names."""

    place: Callable[..., str]

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self.place(path))
        names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks")
        times = {f"st_{kind}time": getattr(found, f"st_{kind}time_ns") for kind in "amc"}
        return {name: getattr(found, name) for name in names} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self.place(path))]

    def open(self, path: str, flags: int) -> int:
        return os.open(self.place(path), flags & ~(os.O_APPEND | os.O_CREAT | os.O_EXCL))

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.place(path, needs_room=True), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self.place(path)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self.place(path, needs_room=True)
        return os.pwrite(fh, data, offset)

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self.place(path), length)
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        os.rename(self.place(old), self.place(new))
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self.place(path))
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self.place(path, needs_room=True), mode)
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self.place(path))
        return 0

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self.place(path), mode)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self.place(path), ns=times)
        return 0

    def symlink(self, target: str, source_path: str) -> int:
        os.symlink(source_path, self.place(target))
        return 0

    def readlink(self, path: str) -> str:
        return os.readlink(self.place(path))

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self.place(path))
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_namemax")
        return {name: getattr(found, name) for name in names}


if __name__ == "__main__":
    serve(*sys.argv[1:])
