"""What a worker tells the outside: its log, its status record, its error, its progress.

Every rank owns `rank-K.log`, `rank-K.json` and, when it fails, `error-rank-K.json` in the
attempt directory; SIGUSR1 makes it write where each of its threads is to `rank-K.stacks`. The
status record, not the exit code, says how a rank ended: torchrun returns 1 even for a graceful
stop. Imports nothing heavy, so that the log and the record exist before torch is loaded. The
format is documented in docs/run-directory.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import io
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from engine import secrets
from engine.errors import EngineError, ExitCode, StepFailed
from engine.paths import expanded, write_atomic
from engine.plan.plan import Plan
from engine.processes import ProcessId
from engine.run.directory import RunDirectory, append_line
from engine.settings import Settings
from engine.settings_file import load
from engine.workers import affinity

PROGRESS_INTERVAL_S = 0.5
"""Progress events are for people; more often than this they only fill the file."""
TOLD_INTERVAL_S = 10.0
"""On a terminal they scroll by."""

_KIB_PER_GIB = 1 << 20
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

type Work = Callable[[Report], Mapping[str, Any]]


class Stopped(BaseException):
    """A stop was asked for and obeyed. Not an Exception: no code on the way may swallow it."""


class Report:
    """One rank's view of its run: what it is to do, and where it says how far it is."""

    def __init__(self, step: str, run: RunDirectory, terminal: TextIO | None = None) -> None:
        self.step = step
        self._terminal = terminal
        self.run = run
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.started_in = Path.cwd()
        self.settings: Settings = load(run.settings)
        self.plan: Plan = run.read_plan()
        self._last_progress = self._last_told = 0.0

    def phase(self, message: str) -> None:
        """Say what begins now, for example "building the model"."""
        if self.rank == 0:
            self.event("phase", message)
            _tell(self._terminal, f"{self.step}: {message}")
        print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)

    def progress(self, message: str, done: int, total: int, unit: str) -> None:
        """Say how far the step is; the last call (done = total) is never left out."""
        now = time.monotonic()
        if self.rank == 0 and (done >= total or now - self._last_progress >= PROGRESS_INTERVAL_S):
            self._last_progress = now
            self.event("progress", message, done=done, total=total, unit=unit)
            if done >= total or now - self._last_told >= TOLD_INTERVAL_S:
                self._last_told = now
                _tell(self._terminal, f"{self.step}: {message}: {done:,} of {total:,} {unit}")

    def event(self, kind: str, message: str, **facts: Any) -> None:
        """Add one line to the run's events. A disk that is full for a while costs the line, not the training."""
        with _no_matter("event"):
            self.run.append_event(kind, message, step=self.step, **facts)

    def metric(self, iteration: int, **values: float | None) -> None:
        """Add one record to the run's metrics, as `event` does; a value that is None was not measured."""
        known = {name: value for name, value in values.items() if value is not None}
        with _no_matter("metric"):
            append_line(self.run.metrics, {"t": time.time(), "step": self.step, "iteration": iteration, **known})

    def user_path(self, path: str) -> Path:
        """A path that a person typed; relative ones count from where the worker was started."""
        return self.started_in / expanded(path)


@contextlib.contextmanager
def _no_matter(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        print(f"a {what} was not written: {error}", file=sys.stderr)


def run_worker(step: str, work: Work, arguments: list[str]) -> int:
    """Do `work` for the run directory in `arguments`, report about it, and return the exit code."""
    if len(arguments) != 1:
        print(f"usage: python -m engine.workers.{step} RUN_DIR", file=sys.stderr)
        return 2
    run = RunDirectory(Path(arguments[0]))
    if not os.environ.get("GPTOSS_ATTEMPT") and not run.settings.is_file():
        print(f"{step}: {run.path} is no run directory: it has no {run.settings.name}", file=sys.stderr)
        return ExitCode.NOT_FOUND
    rank = int(os.environ.get("RANK", "0"))
    try:
        terminal = _terminal()
        attempt = _attempt_directory(run, step)
        log = attempt / f"rank-{rank}.log"
        _redirect_output(log)
    except OSError as error:
        print(f"{step}: {run.path} cannot be used: {error}", file=sys.stderr)
        return 1
    if rank == 0:
        _tell(terminal, f"{step}: everything it says is in {log}")
    _dump_stacks_to(_stacks_file(attempt, rank))
    status = _Status(attempt, rank, terminal)
    stop = _StopSignal()
    _end_with_parent()
    try:
        status.write("running")
        report = Report(step, run, terminal)
        if done := affinity.pin(report.settings.launch.cpu_affinity, report.plan.device):
            print(done, flush=True)
        # Megatron writes the paths it was given into run_config.yaml; relative ones
        # survive a move of the run directory.
        os.chdir(run.path)
        result = work(report)
    except Stopped as stopped:
        return status.end("stopped", dict(stopped.args[0]) if stopped.args else {})
    except (Exception, SystemExit) as error:
        # A signal between two collectives makes the peers fail first; they were stopped too.
        if stop.received and not isinstance(error, EngineError):
            traceback.print_exc()
            return status.end("stopped", {})
        status.write_error(error)
        return status.end("failed", {})
    return status.end("finished", result)


def _attempt_directory(run: RunDirectory, step: str) -> Path:
    if chosen := os.environ.get("GPTOSS_ATTEMPT"):
        attempt = Path(chosen)
        # Without `parents`: a run whose disk was unmounted must not begin anew on the mount point.
        attempt.mkdir(exist_ok=True)
    else:
        attempt = run.attempt(0, step)
        attempt.mkdir(parents=True, exist_ok=True)
    return attempt


def _terminal() -> TextIO | None:
    """Where a person who started this by hand looks; None where a supervisor follows the run's records."""
    if os.environ.get("GPTOSS_ATTEMPT") and not os.environ.get("GPTOSS_BY_HAND"):
        return None
    return _Log(os.dup(2))


def _tell(terminal: TextIO | None, text: str) -> None:
    if terminal is not None:
        terminal.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")


def _redirect_output(log: Path) -> None:
    """Send stdout and stderr, those of native code and children included, to `log`."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    # Under a test runner these are its own objects; a worker writes to the descriptors.
    sys.stdout, sys.stderr = _Log(1), _Log(2)
    faulthandler.enable(file=sys.stderr)


class _Log(io.TextIOWrapper):
    """A text stream on a descriptor; what a full disk does not take is lost instead of ending the work."""

    def __init__(self, descriptor: int) -> None:
        raw = open(descriptor, "wb", closefd=False)  # noqa: SIM115
        super().__init__(raw, encoding="utf-8", errors="replace", line_buffering=True)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()


def _stacks_file(attempt: Path, rank: int) -> Path:
    return attempt / f"rank-{rank}.stacks"


def _dump_stacks_to(path: Path) -> None:
    """On SIGUSR1 write the stacks of all threads to `path`. In C, so that it works in a rank that hangs."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True)


def _end_with_parent() -> None:
    """Be asked to save and to leave when torchrun is killed: nobody would end this rank any more."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


class _StopSignal:
    """Turns SIGTERM into `Stopped` until Bridge's training loop takes the signal over."""

    def __init__(self) -> None:
        self.received = False
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        raise Stopped


class _Status:
    """The record `rank-K.json`."""

    def __init__(self, attempt: Path, rank: int, terminal: TextIO | None) -> None:
        self._attempt = attempt
        self._terminal = terminal
        self._rank = rank
        self._started = time.time()

    def write(self, outcome: str, **facts: Any) -> None:
        process = ProcessId.of(os.getpid())
        record = {
            "outcome": outcome,
            "rank": self._rank,
            "process": process.to_json() if process else None,
            "started": self._started,
            **facts,
        }
        write_atomic(self._attempt / f"rank-{self._rank}.json", json.dumps(record) + "\n")

    def write_error(self, error: BaseException) -> None:
        text = secrets.redact("".join(traceback.format_exception(error)))
        print(text, file=sys.stderr, flush=True)
        record = {
            "t": time.time(),
            "rank": self._rank,
            "error": type(error).__name__,
            "message": secrets.redact(error.message if isinstance(error, EngineError) else str(error)),
            "hint": _hint(error),
            "traceback": text,
        }
        write_atomic(self._attempt / f"error-rank-{self._rank}.json", json.dumps(record) + "\n", mode=0o600)
        hint = f"\n           {record['hint']}" if record["hint"] else ""
        _tell(self._terminal, f"rank {self._rank}: {record['error']}: {record['message']}{hint}")

    def end(self, outcome: str, result: Mapping[str, Any]) -> int:
        """Write the final record and return the exit code that belongs to it."""
        # A second SIGTERM must not turn what is finished into a failure.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.write(outcome, ended=time.time(), **_peak_memory(), result=dict(result))
        if self._rank == 0 or outcome == "failed":
            _tell(self._terminal, f"rank {self._rank}: {outcome}")
        stacks = _stacks_file(self._attempt, self._rank)
        if stacks.exists() and not stacks.stat().st_size:
            stacks.unlink()
        return 1 if outcome == "failed" else 0


def _peak_memory() -> dict[str, float]:
    # Not ru_maxrss: that of the parent lives on in it through fork and exec.
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    resident_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    peak = {"peak_memory_gib": round(resident_kib / _KIB_PER_GIB, 3)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["peak_gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / (1 << 30), 3)
    return peak


def _hint(error: BaseException) -> str:
    if isinstance(error, EngineError):
        return error.hint
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "free some disk space, or choose another place with --set output.directory=DIR"
    if isinstance(error, ModuleNotFoundError):
        return "the training packages are incomplete; see: gptoss doctor"
    return ""


def require(condition: bool, message: str, hint: str) -> None:
    """Raise StepFailed unless `condition` holds."""
    if not condition:
        raise StepFailed(message, hint)
