"""Why a run failed: the diagnosis that its supervisor kept, or one made now from what is there."""

from __future__ import annotations

import json
from pathlib import Path

from engine import settings_file
from engine.monitor.diagnose import UNKNOWN, Diagnosis, diagnose_texts, read_attempt
from engine.run import reports
from engine.run.directory import RunDirectory
from engine.run.state import State, Status

_UNKNOWN = "this failure is not in the catalogue"


def cause_of(run: RunDirectory) -> Diagnosis | None:
    """The cause of the failure that ended `run`; None when it did not fail or nothing explains it.

    Raises RunError or SettingsError for a damaged run.
    """
    state = run.read_state()
    if state.status is not Status.FAILED:
        return None
    last = next((step.status for step in state.steps if step.name == state.step), Status.PENDING)
    if last in (Status.PENDING, Status.FINISHED):
        # The next attempt was never made; the logs of the last one tell of a success.
        return _of_supervisor(state) if state.message else None
    attempt = run.attempt(state.attempt, state.step)
    try:
        return Diagnosis.from_json(json.loads((attempt / "diagnosis.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        # A copied run may lack it, and one of an older gptoss was judged by a smaller catalogue.
        found = diagnose_texts(read_attempt(attempt), settings_file.load(run.settings), run.read_plan())
        return found or _as_told(state, attempt)


def _as_told(state: State, attempt: Path) -> Diagnosis | None:
    """A failure that no catalogue knows, in the words of the rank that failed first, or of the supervisor."""
    error = reports.earliest_error(attempt)
    if error is None:
        return _of_supervisor(state, why=_UNKNOWN, next_step=f"read the logs in {attempt}") if state.message else None
    return Diagnosis(
        key=UNKNOWN,
        cause=_first_line(f"{error.error}: {error.message}"),
        why=_UNKNOWN,
        next_step=error.hint or f"read {attempt}/rank-{error.rank}.log",
        edit={},
        evidence=_first_line(error.message),
        log=f"error-rank-{error.rank}.json",
        rank=error.rank,
        t=error.t,
        is_curable=reports.may_pass(error),
        source="",
    )


def _of_supervisor(
    state: State,
    why: str = "the supervisor could not start a step",
    next_step: str = "mend that, then resume the run; supervisor.log may tell more",
) -> Diagnosis:
    return Diagnosis(
        key=UNKNOWN,
        cause=state.message,
        why=why,
        next_step=next_step,
        edit={},
        evidence=state.message,
        log="state.json",
        rank=None,
        t=state.ended or state.heartbeat,
        is_curable=True,
        source="",
    )


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "no message")
