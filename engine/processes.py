"""Tell one process from another that reuses its pid.

A pid alone says nothing after a reboot or a wrap-around. The kernel's start time in clock
ticks since boot, with the boot's own id, names one process for ever, and neither changes
when somebody sets the clock.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STATE, _START_TICKS = 0, 19  # fields 3 and 22 of proc(5) stat, counted after the name


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process on one host during one boot."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has `pid` now, or None when there is none."""
        fields = _stat(pid)
        if fields is None:
            return None
        return cls(pid=pid, start_ticks=int(fields[_START_TICKS]), boot_id=boot_id())

    @classmethod
    def from_json(cls, value: Any) -> ProcessId | None:
        if not isinstance(value, dict):
            return None
        try:
            return cls(pid=int(value["pid"]), start_ticks=int(value["start_ticks"]), boot_id=str(value["boot_id"]))
        except (KeyError, TypeError, ValueError):
            return None

    def to_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "start_ticks": self.start_ticks, "boot_id": self.boot_id}

    def is_alive(self) -> bool:
        """True while this very process runs here; a zombie has ended."""
        fields = _stat(self.pid)
        return (
            fields is not None
            and fields[_STATE] not in "ZX"
            and int(fields[_START_TICKS]) == self.start_ticks
            and boot_id() == self.boot_id
        )

    def is_frozen(self) -> bool:
        """True while a signal (SIGSTOP) keeps this process from running."""
        fields = _stat(self.pid)
        return self.is_alive() and fields is not None and fields[_STATE] in "Tt"

    def send(self, number: signal.Signals) -> bool:
        """Signal this process; False when it is gone already."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def boot_id() -> str:
    """The id of the running boot; another host or another boot has another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself hold spaces and parentheses.
    return text.rpartition(")")[2].split()
