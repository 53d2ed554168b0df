"""A worker without torch: `python fake_worker.py RUN_DIR`, told by $FAKE_WORK what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from engine.errors import PlanError
from engine.workers.report import Report, Stopped, run_worker


def finish(report: Report) -> Mapping[str, Any]:
    report.phase("doing it")
    for done in range(1, 101):
        report.progress(f"{done} of 100", done, 100, "things")
    report.metric(3, loss=1.5, grad_norm=None)
    print("from python")
    subprocess.run(["echo", "from a child"], check=True)
    return {"answer": 42, "cwd": os.getcwd(), "path": str(report.user_path("here"))}


def fail(report: Report) -> Mapping[str, Any]:
    raise ZeroDivisionError("one by zero")


def refuse(report: Report) -> Mapping[str, Any]:
    raise PlanError("this cannot be", "try that")


def fill_the_disk(report: Report) -> Mapping[str, Any]:
    raise OSError(28, "No space left on device")


def miss_a_package(report: Report) -> Mapping[str, Any]:
    import no_such_package  # type: ignore[import-not-found]

    return dict(no_such_package.values)


def leave(report: Report) -> Mapping[str, Any]:
    raise SystemExit(3)


def obey(report: Report) -> Mapping[str, Any]:
    raise Stopped({"iteration": 7})


def wait_for_a_signal(report: Report) -> Mapping[str, Any]:
    report.phase("waiting")
    while True:
        signal.pause()


def break_while_stopping(report: Report) -> Mapping[str, Any]:
    """What a peer's end looks like: the collective fails because the other rank is gone."""
    report.phase("waiting")
    try:
        signal.pause()
    except Stopped:
        raise RuntimeError("connection closed by peer") from None
    return {}


if __name__ == "__main__":
    sys.exit(run_worker("train", globals()[os.environ["FAKE_WORK"]], sys.argv[1:]))
