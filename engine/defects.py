"""Keep the trace of an unexpected error where its finder can report it."""

from __future__ import annotations

import time
import traceback

from engine.paths import state_root


def keep_trace() -> str:
    """Write the exception being handled to a file; return a sentence that says where it is."""
    path = state_root() / "defects.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(time.strftime("%Y-%m-%d %H:%M:%S\n") + traceback.format_exc() + "\n")
    except OSError:
        return "this is a defect of gptoss; please report it"
    return f"this is a defect of gptoss; details are in {path}"
