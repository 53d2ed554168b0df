"""One conversion in a process of its own: `python -m engine.workers.stream JOB`, JOB as JSON.

The command line starts it, because it itself never loads numpy or torch. Prints JSON lines: progress while
it works, then {"result": …} or {"error": …}; what libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from engine.errors import EngineError, ExitCode

_INTERVAL_S = 0.5


class _Progress:
    """Passes on a few sentences a second, none twice in a row."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = 0.0
        self._told = ""

    def __call__(self, message: str, done: int, total: int) -> None:
        now = time.monotonic()
        if message != self._told and (done >= total or now - self._last >= _INTERVAL_S):
            self._last, self._told = now, message
            self.write({"progress": message, "done": done, "total": total})

    def write(self, record: dict[str, Any]) -> None:
        print(json.dumps(record), file=self._stream, flush=True)


def main(arguments: list[str]) -> int:
    """Do the job and return the exit code."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy multiplies no matrices here, and starts none for it
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a conversion needs no GPU and must not start one
    progress = _Progress(answers)
    job = json.loads(arguments[0])
    try:
        progress.write({"result": _JOBS[job.pop("job")](job, progress)})
    except EngineError as error:
        progress.write({"error": error.message, "hint": error.hint, "code": int(error.exit_code)})
        return int(error.exit_code)
    return ExitCode.DONE


def _convert(job: dict[str, Any], progress: _Progress) -> dict[str, Any]:
    from engine.workers.stream.convert import convert

    return convert(Path(job["source"]), Path(job["out"]), job["dtype"], on_progress=progress, threads=job["threads"])


def _export(job: dict[str, Any], progress: _Progress) -> dict[str, Any]:
    from engine.workers.stream.export import Extras, export

    source, out, reference = (Path(job[name]) for name in ("source", "out", "reference"))
    extras = Extras(base=Path(job["base"]) if job["base"] else None, origin=job["origin"])
    return export(source, out, reference, job["dtype"], extras=extras, on_progress=progress, threads=job["threads"])


def _verify(job: dict[str, Any], progress: _Progress) -> dict[str, Any]:
    from engine.workers.stream.verify import verify

    against = Path(job["against"]) if job["against"] else None
    return verify(
        Path(job["source"]),
        against,
        base=Path(job["base"]) if job["base"] else None,
        with_logits=job["with_logits"],
        on_progress=progress,
        threads=job["threads"],
    )


_JOBS: dict[str, Callable[[dict[str, Any], _Progress], dict[str, Any]]] = {
    "convert": _convert,
    "export": _export,
    "verify": _verify,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
