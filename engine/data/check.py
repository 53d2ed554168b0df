"""Reads back what was written, with our own code and with Megatron's where it is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine.data import indexed
from engine.data.job import SIDES
from engine.data.pool import environment
from engine.data.request import Request
from engine.errors import StepFailed

MEGATRON, OWN = "megatron", "gptoss"


def read_back(request: Request, work: Path) -> str:
    """Read what was written; return by what. Raises StepFailed when it is not what was meant."""
    if request.packing is not None:
        return ""
    rows = request.vocabulary.size
    prefixes = [work / side for side in SIDES if (work / f"{side}.idx").exists()]
    found = {str(prefix): indexed.check(prefix, rows) for prefix in prefixes}
    if not request.reads_back or importlib.util.find_spec("megatron") is None:
        return OWN
    process = _Question("engine.workers.readback", {"prefixes": list(found)})
    try:
        answer = process.answer("Megatron's reading of the result")
    finally:
        process.close()
    if "skipped" in answer:
        return OWN
    for prefix, facts in found.items():
        theirs = answer["prefixes"][prefix]
        if theirs != {"documents": facts.documents, "tokens": facts.tokens}:
            raise StepFailed(f"Megatron reads {theirs} from {prefix}, {facts} was written", "please report this")
    return MEGATRON


class _Question:
    """One process that is asked one thing."""

    def __init__(self, module: str, question: dict[str, Any]) -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(3)]
        asked, self._output, self._errors = self._files
        asked.write(json.dumps(question).encode())
        asked.seek(0)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=asked,
            stdout=self._output,
            stderr=self._errors,
            env=environment(),
        )

    def answer(self, what: str) -> dict[str, Any]:
        """Wait for it. Raises StepFailed."""
        code = self.process.wait()
        self._output.seek(0)
        self._errors.seek(0)
        lines = self._output.read().splitlines()
        if code or not lines:
            tail = self._errors.read().decode(errors="replace").strip().splitlines()
            raise StepFailed(f"{what} failed (code {code}): {tail[-1] if tail else 'it said nothing'}", "run it again")
        value: dict[str, Any] = json.loads(lines[-1])
        return value

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for file in self._files:
            file.close()
