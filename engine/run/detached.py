"""How a supervisor leaves its starter: a session of its own, one answer through a pipe, then only its log."""

from __future__ import annotations

import contextlib
import os
import time

from engine.errors import EngineError

HELD = "held"
"""What a starter is told when the run is held; anything else is the reason why it is not."""


def detach() -> None:
    """Leave the starter's session and input; its output stays until the run is held."""
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)


def answer(ready: int, text: str) -> None:
    """Tell the starter, who reads the pipe `ready`."""
    with contextlib.suppress(BrokenPipeError):  # the starter was killed; the run is not
        os.write(ready, text.encode())


def why_not(error: EngineError | OSError) -> str:
    """Why the run is not held: a sentence and, in the last line, what to try."""
    if isinstance(error, EngineError):
        return f"{error.message}\n{error.hint}"
    return f"{unwritable(error)}\ncheck its permissions and the free space"


def unwritable(error: OSError) -> str:
    """A sentence about a directory that cannot be written."""
    where = f" ({error.filename})" if error.filename else ""
    return f"the run's directory cannot be written: {error.strerror}{where}"


def note(text: str) -> None:
    """Add a line to the supervisor's log."""
    with contextlib.suppress(OSError):  # a full disk must not end the run that it may yet let finish
        print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)
