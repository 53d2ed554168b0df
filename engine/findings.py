"""One result of a check: what was found, why it matters, how to mend it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Severity(StrEnum):
    """How bad a finding is: worth knowing, worth mending, or certain to fail."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found."""

    key: str
    """Names the check for ever, `gpu.busy` for example: tests, docs and `--ignore` use it."""
    severity: Severity
    what: str
    """One sentence: what is so."""
    why: str = ""
    """One sentence: what it leads to."""
    fix: str = ""
    """The command or the change that mends it."""
    ignorable: bool = True
    """False when going on cannot work, whatever a person says."""

    def __str__(self) -> str:
        return f"{self.severity}: {self.what}" + (f" ({self.fix})" if self.fix else "")

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the field names as keys."""
        return {**asdict(self), "severity": self.severity.value}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Finding:
        """Raises KeyError, TypeError or ValueError for anything that `to_json` did not make."""
        return cls(**{**value, "severity": Severity(value["severity"])})


def info(key: str, what: str, why: str = "", fix: str = "") -> Finding:
    """Something worth knowing."""
    return Finding(key=key, severity=Severity.INFO, what=what, why=why, fix=fix)


def warning(key: str, what: str, why: str = "", fix: str = "") -> Finding:
    """Something that may go wrong, or that costs speed."""
    return Finding(key=key, severity=Severity.WARNING, what=what, why=why, fix=fix)


def error(key: str, what: str, why: str = "", fix: str = "", *, ignorable: bool = False) -> Finding:
    """Something that will fail; `ignorable` when the check may be wrong about it."""
    return Finding(key=key, severity=Severity.ERROR, what=what, why=why, fix=fix, ignorable=ignorable)


ASSIGNMENT = re.compile(r"--set (?P<key>[a-z_]+\.[a-z0-9_]+)=(?P<value>'[^']*'|\S*)")
"""The option that changes one setting, as fixes and hints name it."""


def for_forms(fix: str) -> str:
    """A fix as one reads it beside a form: `--set data.path=FILE` becomes `set data.path to FILE`."""
    return ASSIGNMENT.sub(lambda one: f"set {one['key']} to {one['value'] or 'nothing'}", fix)


_RANK = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 2}


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then warnings; otherwise in the order in which they were found."""
    return tuple(sorted(findings, key=lambda finding: _RANK[finding.severity]))
