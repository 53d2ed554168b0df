"""What an attempt has on disk to be started, asked and ended: command.sh, signal.sh, stop.sh, kill.sh, stacks.sh.

The last three exist where the ranks are not processes of this machine: in a container, on
other nodes, in a queue. They work by hand as well. Who wrote them also knows them by heart: a share
that cannot be read must not keep ranks elsewhere from being ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from engine.launch import signals
from engine.launch.command import Command
from engine.launch.slurm import JOB_ID, JOB_SCRIPT
from engine.paths import write_atomic

COMMAND, STOP, KILL, STACKS = "command.sh", "stop.sh", "kill.sh", "stacks.sh"
KILL_LIMIT_S = 60
"""A node that does not answer must not keep the run from ending."""


class SideScripts:
    """The scripts of one attempt, for the process that started it."""

    def __init__(self, command: Command, attempt: Path) -> None:
        self._command, self._attempt = command, attempt
        # As the ranks have it in their environment; asked now, while the share answers.
        run = Path(os.path.realpath(command.run))
        self._stop = command.at_once(command.stop, run)
        self._kill = command.at_once(command.kill, run)

    def write(self) -> Path:
        """Write the scripts into the attempt's directory; return the one to start. Raises OSError."""
        command, attempt = self._command, self._attempt
        texts = {
            **command.files,
            signals.NAME: signals.SCRIPT,
            STOP: command.stop_script(attempt / STOP),
            KILL: command.kill_script(attempt / KILL),
            STACKS: command.stacks_script(attempt / STACKS),
            COMMAND: command.script(attempt / COMMAND),
        }
        for name, text in texts.items():
            if text:
                is_data = name.endswith(".env")
                write_atomic(attempt / name, text, mode=0o644 if is_data else 0o755)
        return attempt / COMMAND

    def ask_to_stop(self) -> bool:
        """Ask the ranks to save and to leave, and do not wait; False when they can be signalled directly."""
        return bool(self._stop) and _start(["bash", "-c", self._stop], self._attempt) is not None

    def kill(self) -> bool:
        """End what is not of this machine, within a minute; False when there is nothing to end or it was not found."""
        return bool(self._kill) and _run(["bash", "-c", self._kill], self._attempt)


def kill(attempt: Path) -> bool:
    """Run kill.sh for at most a minute; False when there is none or it found nothing to end."""
    return _is_there(attempt / KILL) and _run(["bash", str(attempt / KILL)], attempt)


def save_stacks(attempt: Path) -> bool:
    """Run stacks.sh for at most a minute; False when there is none or it reached no rank."""
    return _is_there(attempt / STACKS) and _run(["bash", str(attempt / STACKS)], attempt)


def is_queued(attempt: Path) -> bool:
    """True when Slurm carries the attempt out: then nobody here needs to keep it alive."""
    return _is_there(attempt / JOB_ID)


def may_be_queued(attempt: Path) -> bool:
    """True when Slurm may carry the attempt out, also where whoever submitted it could not note that any more."""
    return is_queued(attempt) or _is_there(attempt / JOB_SCRIPT)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _start(words: Sequence[str], attempt: Path) -> subprocess.Popen[bytes] | None:
    """Start a script whose output goes to the launcher's log, where that can be written."""
    try:
        log = os.open(attempt / "launcher.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)
    try:
        return subprocess.Popen(
            words, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    except OSError:
        return None
    finally:
        os.close(log)


def _run(words: Sequence[str], attempt: Path) -> bool:
    started = _start(words, attempt)
    if started is None:
        return False
    try:
        return started.wait(KILL_LIMIT_S) == 0
    except subprocess.TimeoutExpired:
        # Its ssh or scancel hangs with the node it asks. Not waited for: what hangs in the kernel cannot be killed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        return False
