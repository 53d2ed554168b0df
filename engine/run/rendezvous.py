"""Why the nodes of an attempt did not meet, from what torchrun left in its logs."""

from __future__ import annotations

import re
from pathlib import Path

_TAIL_BYTES = 65_536
_LOGS = ("launcher.log", "node-*.log", "slurm-*.log")

# Texts of torch 2.13 (c10d/TCPStore.cpp, socket.cpp), unchanged since 2.3.
_PATTERNS = (
    (re.compile(r"Timed out after \d+ seconds waiting for clients\. (\d+)/(\d+) clients joined"),
     "only {0} of {1} nodes came to the rendezvous",
     "look at the other nodes' logs, and whether they reach launch.master_addr"),
    (re.compile(r"client socket has timed out after \d+ ?ms while trying to connect to \(([^,]+), (\d+)\)"),
     "a node did not reach the rendezvous at {0}:{1}",
     "set launch.master_addr to an address of the first node that every node reaches, and open its ports"),
    (re.compile(r"EADDRINUSE|[Aa]ddress already in use"),
     "the port of the rendezvous is taken on the first node",
     "--set launch.master_port=N with a free one"),
)  # fmt: skip


def problem(attempt: Path) -> tuple[str, str] | None:
    """What kept the nodes apart, and the next thing to try; None when nothing says so."""
    texts = [_end_of(path) for pattern in _LOGS for path in sorted(attempt.glob(pattern))]
    for pattern, message, fix in _PATTERNS:
        for text in texts:
            if found := pattern.search(text):
                return message.format(*found.groups()), fix
    return None


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
