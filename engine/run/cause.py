"""Why a run failed: the diagnosis that its supervisor kept, or one made now from what is there."""

from __future__ import annotations

import json

from engine import settings_file
from engine.monitor.diagnose import Diagnosis, diagnose_texts, read_attempt
from engine.run.directory import RunDirectory
from engine.run.state import Status


def cause_of(run: RunDirectory) -> Diagnosis | None:
    """The cause of the failure that ended `run`; None when it did not fail or nothing explains it.

    Raises RunError or SettingsError for a damaged run.
    """
    state = run.read_state()
    if state.status is not Status.FAILED:
        return None
    attempt = run.attempt(state.attempt, state.step)
    try:
        return Diagnosis.from_json(json.loads((attempt / "diagnosis.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        # A copied run may lack it, and one of an older gptoss was judged by a smaller catalogue.
        return diagnose_texts(read_attempt(attempt), settings_file.load(run.settings), run.read_plan())
