"""Tokenising processes: made, fed, replaced when their memory has grown, ended.

One process, the nursery, loads the tokenizer and stays empty; every other is forked from it, so that a new one
costs milliseconds and all of them share the vocabulary in memory. Each gets the two ends of its pipes through a
socket.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import engine
from engine.data.job import Job, Result
from engine.data.sources import SourceFile
from engine.data.units import Unit
from engine.errors import EngineError, SettingsError, StepFailed

_AHEAD = 2
"""Units a process has at most: one at work, one waiting."""
_STDERR_TAIL = 2000
_BLOCK = 1 << 16
_LEAVE_S = 10.0


class DiskFull(Exception):
    """A process could not write."""


class Pool:
    """Carries out units on several processes; results come as they are ready."""

    def __init__(self, job: Job, workers: int, memory_mib: int) -> None:
        """`memory_mib` is how large one process may grow before another takes its place."""
        self._memory_mib = memory_mib
        self._workers = workers
        self._selector = selectors.DefaultSelector()
        self._processes: list[_Process] = []
        self._nursery = _Nursery(job)
        self._difference: str | None = None
        self.replaced = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *unused: object) -> None:
        for process in list(self._processes):
            self._forget(process)
        self._selector.close()
        self._nursery.close()

    @property
    def wants_more(self) -> bool:
        """True while a unit would start at once or soon."""
        staying = self._staying()
        return len(staying) < self._workers or any(len(process.units) < _AHEAD for process in staying)

    @property
    def is_busy(self) -> bool:
        return any(process.units for process in self._processes)

    def give(self, unit: Unit) -> None:
        """Hand `unit` to the process with the least to do."""
        staying = self._staying()
        process = min(staying, key=lambda one: len(one.units), default=None)
        if process is None or (process.units and len(staying) < self._workers):
            process = self._start()
        process.units.append(unit)
        process.send(unit.to_json())

    def compare(self, files: list[SourceFile]) -> None:
        """Let a process of its own compare gigatoken with the reference on a sample of `files`."""
        process = self._start()
        process.is_leaving = process.is_comparing = True
        process.send({"compare": [asdict(file) for file in files]})

    def difference(self) -> str:
        """How gigatoken differs from the reference; nothing while, or if, no difference is known."""
        return self._difference or ""

    def wait_for_comparison(self) -> None:
        """Until the comparison, if one was asked for, is made. Raises EngineError."""
        while self._difference is None and any(process.is_comparing for process in self._processes):
            for _ in self.results(None):
                pass

    def results(self, timeout_s: float | None) -> Iterator[tuple[Unit, Result]]:
        """What is ready, after waiting at most `timeout_s`. Raises EngineError, DiskFull."""
        for key, _ in self._selector.select(timeout_s):
            process: _Process = key.data
            answers = process.read()
            if answers is None:
                self._ended(process)
                continue
            for answer in answers:
                if "error" in answer:
                    raise _as_error(answer)
                if "difference" in answer:
                    self._difference = str(answer["difference"])
                    process.is_comparing = False
                    continue
                result = Result.from_json(answer["result"])
                yield process.units.popleft(), result
                if result.rss_mib > self._memory_mib and not process.is_leaving:
                    self.replaced += 1
                    process.leave()

    def _staying(self) -> list[_Process]:
        return [process for process in self._processes if not process.is_leaving]

    def _start(self) -> _Process:
        process = self._nursery.start()
        self._processes.append(process)
        self._selector.register(process.output, selectors.EVENT_READ, process)
        return process

    def _forget(self, process: _Process) -> None:
        self._selector.unregister(process.output)
        self._processes.remove(process)
        process.close()

    def _ended(self, process: _Process) -> None:
        self._forget(process)
        if process.units or process.is_comparing or not process.is_leaving:
            raise self._nursery.explain()


class _Process:
    """One tokenising process, seen through its pipes."""

    def __init__(self, to_it: int, from_it: int) -> None:
        self.units: deque[Unit] = deque()
        self.is_leaving = False
        self.is_comparing = False
        self.output = from_it
        self._input = os.fdopen(to_it, "wb")
        self._held = b""

    def send(self, value: dict[str, Any]) -> None:
        # A process that has ended says so by the end of its output.
        with suppress(BrokenPipeError):
            self._input.write(json.dumps(value).encode() + b"\n")
            self._input.flush()

    def read(self) -> list[dict[str, Any]] | None:
        """The answers that are whole now; None when it has ended."""
        block = os.read(self.output, _BLOCK)
        if not block:
            return None
        *lines, self._held = (self._held + block).split(b"\n")
        return [json.loads(line) for line in lines]

    def leave(self) -> None:
        """Let it finish what it has, and end."""
        self.is_leaving = True
        with suppress(BrokenPipeError):
            self._input.close()

    def close(self) -> None:
        """Let go of it; without its pipes it ends."""
        self.leave()
        os.close(self.output)


class _Nursery:
    """The process from which the others are forked."""

    def __init__(self, job: Job) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engine.workers.tokenise", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=self._errors,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                env=environment(),
                # All of them in a group, to be ended as one.
                process_group=0,
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stream:
            stream.write(json.dumps(job.to_json()).encode())

    def start(self) -> _Process:
        """A new tokenising process. Raises EngineError."""
        (their_input, to_it), (from_it, their_output) = os.pipe(), os.pipe()
        try:
            socket.send_fds(self._control, [b"+"], [their_input, their_output])
        except (BrokenPipeError, ConnectionResetError):
            os.close(to_it)
            os.close(from_it)
            raise self.explain() from None
        finally:
            os.close(their_input)
            os.close(their_output)
        return _Process(to_it, from_it)

    def explain(self) -> EngineError:
        """Why a process ended that should not have."""
        self._control.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVE_S)
        lines = [line for line in self._tail().splitlines() if line.strip()]
        if lines and lines[-1].startswith("{"):
            said = json.loads(lines[-1])
            if "error" in said:
                return _as_engine_error(said)
            if said.get("signal") == signal.SIGKILL:
                hint = "it may have run out of memory: try --workers 1; finished parts are kept"
                return StepFailed("a tokenising process was killed from outside", hint)
        return StepFailed(
            f"a tokenising process ended: {lines[-1] if lines else 'it said nothing'}",
            "run it again; finished parts are kept",
        )

    def close(self) -> None:
        """End it and all that were forked from it."""
        self._control.close()
        try:
            self._process.wait(0 if self._process.poll() is not None else 1)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._errors.close()

    def _tail(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - _STDERR_TAIL))
        return self._errors.read().decode(errors="replace")


def environment() -> dict[str, str]:
    """What a process of ours is started with: our code on its path, one thread."""
    root = Path(engine.__file__).resolve().parent.parent
    known = os.environ.get("PYTHONPATH", "")
    # An installed engine is found anyway, and its whole directory on the path would come before others.
    is_installed = root.name in ("site-packages", "dist-packages")
    path = known if is_installed else os.pathsep.join(filter(None, [str(root), known]))
    threads = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **threads, "PYTHONPATH": path}


def _as_error(answer: dict[str, Any]) -> Exception:
    if answer.get("errno") in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(answer["error"])
    return _as_engine_error(answer)


def _as_engine_error(answer: dict[str, Any]) -> EngineError:
    if answer["kind"] == "SettingsError":
        return SettingsError(answer["error"], answer["hint"])
    return StepFailed(f"a tokenising process failed: {answer['error']}", answer["hint"] or "finished parts are kept")
