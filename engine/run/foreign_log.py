"""The log of a program that is not our worker, copied into the run's own records as it grows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from engine.monitor.metrics import LogReader
from engine.monitor.tail import Tail
from engine.run.directory import RunDirectory, append_line


class ForeignLog:
    """Reads what Megatron-LM prints, so that its runs are watched like ours."""

    def __init__(self, run: RunDirectory, attempt: Path, pattern: str, step: str) -> None:
        """`pattern` names the file in `attempt`; the last rank prints the metrics, so it may be a node's log."""
        self._run, self._attempt, self._pattern, self._step = run, attempt, pattern, step
        self._tails: dict[Path, tuple[Tail, LogReader]] = {}
        self.result: dict[str, Any] = {}
        """First and last loss, and the last iteration."""

    def copy(self) -> None:
        """Append what is new to `metrics.jsonl` and `events.jsonl`. Raises OSError."""
        for path in self._attempt.glob(self._pattern):
            tail, reader = self._tails.setdefault(path, (Tail(path), LogReader()))
            for line in tail.read():
                for record in reader.read(line.decode("utf-8", "replace"), time.time()):
                    self._keep(record)

    def _keep(self, record: dict[str, Any]) -> None:
        record = {**record, "step": self._step}
        if "kind" in record:
            append_line(self._run.events, record)
            return
        append_line(self._run.metrics, record)
        if "loss" in record:
            self.result.setdefault("first_loss", record["loss"])
            self.result["last_loss"] = record["loss"]
        if "validation_loss" in record:
            self.result["validation_loss"] = record["validation_loss"]
        if "iteration" in record:
            self.result["iteration"] = record["iteration"]
