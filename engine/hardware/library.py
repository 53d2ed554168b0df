"""NVML opened once, and questions to one device whose refusals are remembered, not raised."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

_SILENT = frozenset({2, 3, 6, 13, 22, 25})
"""Codes that only say that this GPU or driver has no such value: invalid argument, not
supported, not found, function not found, no ECC under vGPU, older structure version."""
_NO_DRIVER = frozenset({1, 9})
"""Codes after which no GPU answers: uninitialised, driver not loaded."""
_LOST = frozenset({15, 16})
"""Codes after which this GPU is of no use: lost, reset required."""


class NoDriver(Exception):
    """NVML cannot be used: its error code (0: the Python package is missing) and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Library:
    """NVML, initialised on first use and kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pynvml: Any = None

    def open(self) -> Any:
        """The initialised module. Raises NoDriver."""
        with self._lock:
            if self._pynvml is None:
                self._pynvml = self._initialise()
            return self._pynvml

    def forget(self) -> None:
        """Initialise again next time: the driver went away or was replaced."""
        with self._lock:
            self._pynvml = None

    @staticmethod
    def _initialise() -> Any:
        try:
            import pynvml
        except ImportError as problem:
            raise NoDriver(0, str(problem)) from problem
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as problem:
            raise NoDriver(problem.value, str(problem)) from problem
        return pynvml


LIBRARY = Library()


@dataclass(slots=True)
class Device:
    """Asks one device and remembers what went wrong."""

    pynvml: Any
    handle: Any
    failures: dict[str, Any] = field(default_factory=dict)
    """The error by the name of the query."""

    def ask(self, name: str, *arguments: Any, default: Any = None) -> Any:
        """The answer of `nvmlDeviceGet<name>`, or `default`. Raises NVMLError when the driver is gone."""
        try:
            return getattr(self.pynvml, f"nvmlDeviceGet{name}")(self.handle, *arguments)
        except self.pynvml.NVMLError as problem:
            if problem.value in _NO_DRIVER:
                raise
            if problem.value not in _SILENT:
                self.failures[name] = problem
            return default

    @property
    def lost(self) -> str:
        """Why the device is of no use, or an empty string."""
        return next((str(problem) for problem in self.failures.values() if problem.value in _LOST), "")

    @property
    def refusals(self) -> dict[str, str]:
        """Queries that failed and should not have, with the driver's words."""
        return {name: str(problem) for name, problem in self.failures.items()}


def decode(text: Any) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
