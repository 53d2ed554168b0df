"""What the ranks of one attempt say of themselves, and what that means.

torchrun's return code is not asked: a graceful stop makes Megatron leave through SystemExit,
which torchrun may count as a failure. Each rank writes `rank-K.json`, a failed one also
`error-rank-K.json`; the earliest error is the cause, later ones are its echo.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from engine.processes import ProcessId
from engine.run import no_start


class Outcome(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What one rank wrote last."""

    rank: int
    outcome: Outcome
    process: ProcessId | None
    peak_memory_gib: float = 0.0
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankError:
    """Why one rank failed."""

    t: float
    rank: int
    error: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one attempt ended."""

    outcome: Outcome
    message: str = ""
    hint: str = ""
    is_curable: bool = True
    """False when starting again would fail in the same way."""
    result: Mapping[str, Any] = field(default_factory=dict)


# The same input gives the same one of these again; a node or a network that failed does not.
_INCURABLE = frozenset(
    "SettingsError PlanError RunError NotFoundError PreflightError StepFailed OutOfMemoryError AssertionError "
    "ValueError TypeError KeyError AttributeError NameError ImportError ModuleNotFoundError FileNotFoundError "
    "PermissionError NotImplementedError SyntaxError IndexError".split()
)


def read_reports(attempt: Path) -> tuple[RankReport, ...]:
    """Every readable rank report of an attempt, by rank."""
    found = []
    for path in attempt.glob("rank-*.json"):
        value = _read(path)
        try:
            found.append(
                RankReport(
                    rank=int(value["rank"]),
                    outcome=Outcome(value["outcome"]),
                    process=ProcessId.from_json(value.get("process")),
                    peak_memory_gib=float(value.get("peak_memory_gib") or 0.0),
                    result=dict(value.get("result") or {}),
                )
            )
        except (KeyError, TypeError, ValueError):
            continue
    return tuple(sorted(found, key=lambda report: report.rank))


def earliest_error(attempt: Path) -> RankError | None:
    """The first error among the ranks, or None."""
    errors = []
    for path in attempt.glob("error-rank-*.json"):
        value = _read(path)
        try:
            errors.append(
                RankError(
                    t=float(value["t"]),
                    rank=int(value["rank"]),
                    error=str(value["error"]),
                    message=str(value["message"]),
                    hint=str(value.get("hint") or ""),
                )
            )
        except (KeyError, TypeError, ValueError):
            continue
    return min(errors, key=lambda error: error.t, default=None)


def may_pass(error: RankError) -> bool:
    """False when starting again would fail in the same way."""
    return error.error not in _INCURABLE


def judge(attempt: Path, ranks: int, return_code: int, *, has_reports: bool = True) -> Verdict:
    """How the attempt ended, given how many ranks should have reported.

    Without `has_reports` a program ran that is not ours: its return code is all there is.
    """
    if not has_reports:
        if return_code == 0:
            return Verdict(outcome=Outcome.FINISHED)
        message = f"it ended with return code {return_code}"
        return Verdict(outcome=Outcome.FAILED, message=message, hint=f"read {attempt.name}/launcher.log")
    reports = read_reports(attempt)
    error = earliest_error(attempt)
    if error is not None:
        first_line = error.message.strip().splitlines()[0] if error.message.strip() else "no message"
        return Verdict(
            outcome=Outcome.FAILED,
            message=f"rank {error.rank}: {error.error}: {first_line}",
            hint=error.hint or f"read {attempt.name}/rank-{error.rank}.log",
            is_curable=may_pass(error),
        )
    outcomes = {report.outcome for report in reports}
    if len(reports) >= ranks and outcomes <= {Outcome.FINISHED, Outcome.STOPPED}:
        result: dict[str, Any] = {}
        for report in reports:
            result |= report.result
        result["peak_memory_gib"] = round(sum(report.peak_memory_gib for report in reports), 3)
        outcome = Outcome.STOPPED if Outcome.STOPPED in outcomes else Outcome.FINISHED
        return Verdict(outcome=outcome, result=result)
    if not reports and (why := no_start.reason(attempt)):
        return Verdict(outcome=Outcome.FAILED, message=why.message, hint=why.hint, is_curable=why.is_curable)
    return Verdict(outcome=Outcome.FAILED, message=_silent_end(reports, ranks, return_code), hint=_logs_hint(attempt))


def _silent_end(reports: tuple[RankReport, ...], ranks: int, return_code: int) -> str:
    if not reports:
        return f"no rank started (return code {return_code})"
    dead = [str(report.rank) for report in reports if report.outcome is Outcome.RUNNING]
    if dead:
        return f"rank {', '.join(dead)} ended without a report: killed from outside or out of memory"
    return f"{len(reports)} of {ranks} ranks reported (return code {return_code})"


def _logs_hint(attempt: Path) -> str:
    return f"read {attempt.name}/launcher.log and the rank logs beside it"


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
