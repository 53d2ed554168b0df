"""What is known of a run at one moment: the content of `state.json`.

The supervisor alone writes it. Readers never believe a `running` whose supervisor is gone.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from engine.errors import RunError
from engine.processes import ProcessId

VERSION = 1


class Status(StrEnum):
    """pending -> running -> finished | failed | stopping -> stopped; a resume goes back to pending.

    `lost` is never written: it is what a reader sees when the supervisor died while running, or when
    whoever started the run died before there was one.
    """

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    FINISHED = "finished"
    LOST = "lost"

    @property
    def is_live(self) -> bool:
        return self in (Status.RUNNING, Status.STOPPING)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """How far one step of the run has come."""

    name: str
    status: Status = Status.PENDING
    attempt: int = 0
    """Number of the attempt directory, counted over the whole run; 0 before the first."""
    started: float | None = None
    """Unix seconds."""
    ended: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One moment of a run."""

    name: str
    status: Status = Status.PENDING
    steps: tuple[StepState, ...] = ()
    step: str = ""
    """The step at work, or the last one."""
    attempt: int = 0
    iteration: int = 0
    checkpoint: int | None = None
    """Iteration of the newest complete checkpoint."""
    created: float = 0.0
    ended: float | None = None
    heartbeat: float = 0.0
    host: str = field(default_factory=platform.node)
    supervisor: ProcessId | None = None
    starter: ProcessId | None = None
    """Who made a pending run ready and is to give it a supervisor."""
    job: ProcessId | None = None
    """The leader of the process group of the step at work."""
    message: str = ""
    """Why the run is where it is, in one sentence."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """What each finished step reported, by step name."""

    def with_step(self, name: str, **changes: Any) -> State:
        """A copy in which one step differs."""
        steps = tuple(replace(step, **changes) if step.name == name else step for step in self.steps)
        return replace(self, steps=steps)

    def find_step(self, name: str) -> StepState:
        return next(step for step in self.steps if step.name == name)

    def observed(self, now: float | None = None) -> State:
        """This state as a reader must see it: a dead supervisor's `running` is `lost`.

        On another host the process cannot be asked; there the heartbeat is all there is,
        and only an old one (10 minutes) is held against the run.
        """
        is_pending = self.status is Status.PENDING
        responsible = self.starter if is_pending else self.supervisor
        if not self.status.is_live and not (is_pending and responsible):
            return self
        here = self.host == platform.node()
        age = (time.time() if now is None else now) - self.heartbeat
        if (here and responsible and responsible.is_alive()) or (not here and age < 600):
            return self
        why = "its start was cut short; start it" if is_pending else "its supervisor is gone; resume"
        return replace(self, status=Status.LOST, message=f"{why} with: gptoss run --resume {self.name}")

    def to_json(self) -> str:
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> State:
        """Read `state.json`. Raises RunError for a newer version or a damaged file."""
        try:
            value = json.loads(text)
            if value.pop("version") > VERSION:
                raise RunError("state.json was written by a newer gptoss", "upgrade gptoss")
            return cls(
                **{
                    **value,
                    "status": Status(value["status"]),
                    "steps": tuple(StepState(**{**s, "status": Status(s["status"])}) for s in value["steps"]),
                    "supervisor": ProcessId.from_json(value["supervisor"]),
                    "starter": ProcessId.from_json(value.get("starter")),
                    "job": ProcessId.from_json(value["job"]),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise RunError(f"state.json is damaged: {error}", "repair it with: gptoss run --resume RUN") from error
