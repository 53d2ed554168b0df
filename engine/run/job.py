"""One started command and every process below it.

torchrun starts each rank in a session of its own, so a signal to its process group would miss
them. The supervisor therefore adopts orphans (it is a subreaper) and ends whole trees.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from engine.errors import LaunchError
from engine.processes import ProcessId

_ATTEMPT = re.compile(rb"(?:^|\0)GPTOSS_ATTEMPT=([^\0]*)/attempts/[^\0/]+(?=\0|$)")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent dies."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Job:
    """A running script; its output goes to a file, never to a pipe that somebody must drain."""

    def __init__(self, script: Path, log: Path) -> None:
        """Start `script` with bash. Raises LaunchError."""
        prctl = ctypes.CDLL(None).prctl  # looked up before the fork: a lock may be held after it

        def in_child() -> None:
            # A killed supervisor must not leave a job that nobody watches: torchrun
            # passes the signal on and Megatron saves before it leaves.
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

        try:
            private = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(private, "ab") as output:
                self._process = subprocess.Popen(
                    ["bash", str(script)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=in_child,  # noqa: PLW1509 - the supervisor has one thread
                )
        except OSError as error:
            raise LaunchError(f"{script} cannot be started: {error}", "check that bash is installed") from error
        self.id = ProcessId.of(self._process.pid)

    def poll(self) -> int | None:
        """The return code, or None while it runs."""
        return self._process.poll()

    def signal_launcher(self, number: signal.Signals) -> None:
        """Signal the script's own process (torchrun) only."""
        if self._process.poll() is None:
            self._process.send_signal(number)


def signal_all(processes: Iterable[ProcessId | None], number: signal.Signals) -> int:
    """Signal those that are alive and return how many were."""
    return sum(process.send(number) for process in processes if process is not None)


def processes_of(run: Path) -> list[ProcessId]:
    """Every process of this machine and user that belongs to an attempt of the run, whoever its parent is."""
    return processes_by_run().get(str(run), [])


def supervisor_of(run: Path) -> ProcessId | None:
    """The supervisor of the run on this machine by its command line, for when the run's record cannot be read."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "engine.run.supervisor" in words and str(run) in words:
            return ProcessId.of(process.pid)
    return None


def processes_by_run() -> dict[str, list[ProcessId]]:
    """The processes of this machine and user that belong to attempts, by the directory of their run.

    Their environment says so, which survives sessions, lost parents and reused pids.
    """
    own = {process.pid for process in psutil.Process().parents()} | {os.getpid()}
    found: dict[str, list[ProcessId]] = {}
    for pid in psutil.pids():
        try:
            match = _ATTEMPT.search(Path(f"/proc/{pid}/environ").read_bytes())
        except OSError:
            continue  # it has ended, or is somebody else's
        process = ProcessId.of(pid) if match and pid not in own else None
        if match and process and process.is_alive():
            found.setdefault(os.fsdecode(match[1]), []).append(process)
    return found


def end_descendants(patience_s: float = 5.0) -> int:
    """Kill every process below this one and reap it; return how many there were.

    A killed process may take a moment to go (a page cache to write, a GPU to release).
    """
    ended = 0
    deadline = time.monotonic() + patience_s
    while True:
        below = psutil.Process().children(recursive=True)
        alive = [process for process in below if process.status() != psutil.STATUS_ZOMBIE]
        _reap()
        if not alive or time.monotonic() > deadline:
            return ended
        for process in alive:
            try:
                process.kill()
                ended += 1
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(alive, timeout=0.5)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
