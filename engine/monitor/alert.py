"""What an alert is, and what its rules know of the job beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from engine.findings import Severity
from engine.monitor.record import as_float
from engine.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something the monitor noticed: what, how it knows, why it may be, what to do."""

    key: str
    """Names the rule for ever: `loss.spike`, `gpu.idle`. docs/monitoring.md lists them."""
    severity: Severity
    message: str
    """One sentence: what is so."""
    evidence: str
    """The numbers it was told from."""
    cause: str
    """The likely cause."""
    next_step: str
    t: float
    """Unix seconds."""
    iteration: int | None = None
    subject: str = ""
    """Which GPU or rank, when the rule watches several: `GPU 3`."""

    def to_json(self) -> dict[str, Any]:
        """An event record of kind `alert`."""
        return {"kind": "alert", **asdict(self), "severity": self.severity.value}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Alert:
        """The alert in an event record. Raises KeyError, TypeError or ValueError for any other record."""
        given = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(**{**given, "severity": Severity(record["severity"])})

    @property
    def name(self) -> str:
        """Key and subject: one alert of a name is in force at a time."""
        return f"{self.key} {self.subject}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a job before its first record; 0 means not known."""

    iterations: int = 0
    warmup_iterations: int = 0
    checkpoint_interval: int = 0
    evaluation_interval: int = 0
    checkpoint_gib: float = 0.0
    """Size of one checkpoint; learnt from the first one when 0."""
    memory_gib: float = 0.0
    """Memory of one GPU."""
    learns: bool = True
    """False when the data are invented: then the loss cannot fall for long."""


def facts_of(settings: Settings, *, checkpoint_gib: float = 0.0, memory_gib: float = 0.0) -> Facts:
    """What the settings of a run tell its alerts."""
    training = settings.training
    return Facts(
        iterations=training.iterations,
        warmup_iterations=training.warmup_iterations,
        checkpoint_interval=training.checkpoint_interval,
        evaluation_interval=training.evaluation_interval,
        checkpoint_gib=checkpoint_gib,
        memory_gib=memory_gib,
        learns=settings.data.source != "mock",
    )


def number(record: dict[str, Any], name: str) -> float | None:
    """A metric of a record; None when it is missing or no number."""
    value = record.get(name)
    return as_float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
