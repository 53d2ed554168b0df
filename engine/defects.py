"""Keep the trace of an unexpected error where its finder can report it."""

from __future__ import annotations

import os
import time
import traceback

from engine import secrets
from engine.paths import make_own, state_root


def keep_trace() -> str:
    """Write the exception being handled to a file; return a sentence that says where it is."""
    path = state_root() / "defects.log"
    try:
        make_own(path.parent)
        trace = secrets.redact(traceback.format_exc())
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", errors="replace") as file:
            file.write(time.strftime("%Y-%m-%d %H:%M:%S\n") + trace + "\n")
    except OSError:
        return "this is a defect of gptoss; please report it"
    return f"this is a defect of gptoss; details are in {path}"
