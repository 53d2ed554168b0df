"""A process that has conversions killed at random moments: one import of torch, one forked child for each.

python -m tests.convert.killing HF_DIR SCRATCH TIMES    prints what was seen, as JSON
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.checkpoints import inspect, manifest
from engine.workers.stream import convert as converting
from engine.workers.stream import export as exporting
from engine.workers.stream import files

_PIECE_BYTES = 20_000


def main(source: Path, scratch: Path, times: int) -> None:
    converting.UNIT_BYTES = exporting.MIN_SHARD_BYTES = exporting.MAX_SHARD_BYTES = _PIECE_BYTES
    good, random_ = scratch / "good", random.Random(7)
    converting.convert(source, good, "bf16")
    jobs: dict[str, Callable[[str], object]] = {
        "convert": lambda dtype: converting.convert(source, scratch / "convert", dtype),
        "export": lambda dtype: exporting.export(good, scratch / "export", source, dtype),
    }
    seen: dict[str, Any] = {name: {"killed": 0, "ended": 0, "resumed": 0, "wrong": []} for name in jobs}
    for name, job in jobs.items():
        out = scratch / name
        started = time.monotonic()
        job("fp32")  # something good, which the killed ones try to replace
        longest = 1.2 * (time.monotonic() - started)
        before = (out / manifest.NAME).read_text()
        for _ in range(times):
            seen[name]["killed" if _killed(job, random_.uniform(0, longest)) else "ended"] += 1
            seen[name]["resumed"] += _has_begun(out)
            if problem := _problem(out, before):
                seen[name]["wrong"].append(problem)
            if (out / manifest.NAME).read_text() != before:
                job("fp32")  # one came through: something old again
                before = (out / manifest.NAME).read_text()
        job("bf16")
        seen[name]["left"] = sorted(path.name for path in scratch.glob(".*"))
        seen[name]["at the end"] = _problem(out, "")
    print(json.dumps(seen))


def _killed(job: Callable[[str], object], after_s: float) -> bool:
    pid = os.fork()
    if pid == 0:
        job("bf16")
        os._exit(0)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def _has_begun(out: Path) -> bool:
    """True when the next one finds finished files to go on with."""
    journal = out.with_name(f".{out.name}.partial") / files.JOURNAL
    return journal.exists() and len(journal.read_bytes().splitlines()) > 1


def _problem(out: Path, before: str) -> str:
    """What is wrong with `out`, which must be the old one or a whole new one."""
    listed = manifest.read(out)
    if listed is None:
        return "there is nothing"
    wrong = manifest.differences(out, listed) + list(inspect.inspect(out).problems)
    text = (out / manifest.NAME).read_text()
    if text != before and listed["dtype"] != "bf16":
        wrong.append("it is neither the old nor the new one")
    return "; ".join(wrong)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
