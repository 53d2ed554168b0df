"""Whether a conversion fits, and how many threads it may use, before it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine.errors import PreflightError

BUDGET_BYTES = 1000 << 20
"""The whole process stays below 1 GiB."""
BASE_BYTES, TORCH_BYTES = 160 << 20, 400 << 20
"""Python and numpy, and torch where it computes, the pages of their libraries included."""
MAX_THREADS = 16
_MARGIN = 1.01
"""Directories and the small files beside the weights."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def threads_for(bytes_per_thread: int, wanted: int = 0, *, has_torch: bool = False) -> int:
    """How many threads fit into the memory and are worth having. Raises PreflightError when not even one does."""
    available, base = available_memory_bytes(), BASE_BYTES + (TORCH_BYTES if has_torch else 0)
    if available < base + bytes_per_thread:
        raise PreflightError(
            f"{available / 2**30:.2f} GiB of memory are free and the conversion needs "
            f"{(base + bytes_per_thread) / 2**30:.2f} GiB",
            "end other processes, or convert on another machine",
        )
    fitting = (min(BUDGET_BYTES, available) - base) // max(bytes_per_thread, 1)
    return max(1, min(wanted or cores(), fitting, MAX_THREADS))


def require_disk(directory: Path, needed_bytes: int, there_bytes: int) -> None:
    """Raise PreflightError unless `needed_bytes` fit, `there_bytes` of which are written already."""
    needed = int((needed_bytes - there_bytes) * _MARGIN)
    free = shutil.disk_usage(directory).free
    if needed > free:
        digits = 1 if needed >= 1e8 else 4
        raise PreflightError(
            f"{directory} has {free / 1e9:.{digits}f} GB free and {needed / 1e9:.{digits}f} GB are needed",
            "free some space, or choose a directory on another disk",
        )


def available_memory_bytes() -> int:
    """What new processes may still take: the machine's, or the control group's when that is less."""
    free = next(
        int(line.split()[1]) << 10
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        if line.startswith("MemAvailable")
    )
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        # Cached pages of files count as used there and give way.
        cached = sum(
            int(line.split()[1])
            for line in Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
            if line.startswith(("inactive_file ", "active_file "))
        )
    except (OSError, ValueError):
        return free  # no control group, or one without a limit ("max")
    return min(free, limit - used + cached)
