"""Planning and checking the draft anew at every edit, in threads; what comes of it is told by the screen below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.findings import Finding, error
from engine.plan.plan import Plan
from engine.settings import Settings
from gptoss_tui import marks
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.draft import Draft
from gptoss_tui.panels import Basis
from gptoss_tui.screens.launching import Launching

if TYPE_CHECKING:
    from engine.machine import Machine

PATIENCE_S = 0.3
"""Checks look at disks and ask other programs, and other layouts take the planner many times longer than one: both
wait until nobody types."""


class Planning(Launching):
    """Owns the draft and what is known about it: the plan or why there is none, and the findings of the checks."""

    wants_alternatives = False
    """True where other layouts are shown."""

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self.draft = draft
        self.outcome: Plan | Failure | None = None
        self._findings: tuple[Finding, ...] = ()
        self._planned_for: tuple[Settings, Machine] | None = None
        """What the last plan was asked for."""
        self._patience = self.set_timer(0, self.look_closer, pause=True)

    def planned(self) -> None:
        """There is another plan, or none any more."""
        raise NotImplementedError

    def checked(self) -> None:
        """The checks of the present plan have come to something else."""
        raise NotImplementedError

    def alternatives_found(self, plan: Plan) -> None:
        """The present plan, with the other layouts."""
        raise NotImplementedError

    @property
    def points(self) -> tuple[Finding, ...]:
        """Everything that is still open, the worst first."""
        return marks.points(self.draft, self.outcome, self._findings)

    @property
    def basis(self) -> Basis:
        """What the facts below the fields may look at."""
        machine, plan = self.cockpit.machine, self.outcome
        return Basis(
            services=self.cockpit.services,
            settings=self.draft.settings,
            plan=plan if isinstance(plan, Plan) else None,
            machine=None if isinstance(machine, Failure) else machine,
        )

    def replan(self) -> bool:
        """Ask for the plan of the draft as it is now; True when it is still to come."""
        machine = self.cockpit.machine
        if isinstance(machine, Failure):
            self._planned_outcome(machine)
        elif machine is not None:
            settings, plan = self.draft.settings, self.cockpit.services.plan
            is_asking = self.is_asking("plan")
            if (settings, machine) == self._planned_for and (is_asking or isinstance(self.outcome, Plan)):
                # As when what was typed is no value: then the last one holds.
                if not is_asking:
                    self.checked()
                    self.look_closer_soon()
                return is_asking
            self._planned_for = settings, machine
            self.ask("plan", lambda: plan(settings, machine, with_alternatives=False))
            return True
        return False

    def look_closer_soon(self) -> None:
        """Look closer as soon as nobody types."""
        self._patience.stop()
        if isinstance(self.outcome, Plan):
            self._patience = self.set_timer(PATIENCE_S, self.look_closer)

    def take_planning_answer(self, answer: Answer) -> bool:
        """Take what a thread came to; False when the answer is about something else."""
        if answer.name == "plan":
            self._planned_outcome(answer.value)
        elif answer.name == "checks":
            self._checks_done(answer.value)
        elif answer.name == "alternatives":
            self._alternatives_done(answer.value)
        else:
            return False
        return True

    def _planned_outcome(self, outcome: Plan | Failure) -> None:
        self.outcome = outcome
        if isinstance(outcome, Failure):
            self._findings = ()
        self.planned()
        self.look_closer_soon()

    def look_closer(self) -> None:
        """Check the plan, and look for others where they are shown."""
        settings, plan = self.draft.settings, self.outcome
        machine, services = self.cockpit.machine, self.cockpit.services
        if isinstance(plan, Plan) and machine is not None and not isinstance(machine, Failure):
            self.ask("checks", lambda: (plan, services.check(settings, plan, machine)))
            if self.wants_alternatives:
                self.ask("alternatives", lambda: (settings, services.plan(settings, machine)))

    def _checks_done(self, answer: tuple[Plan, tuple[Finding, ...]] | Failure) -> None:
        if isinstance(answer, Failure):
            self._findings = (error("checks.failed", answer.message, fix=answer.hint),)
        elif answer[0] is self.outcome:  # else the settings have changed meanwhile
            own = marks.planned_findings(answer[0])
            # What the plan says is read from the plan, which may be a newer one soon.
            self._findings = tuple(finding for finding in answer[1] if finding not in own)
        else:
            return
        self.checked()

    def _alternatives_done(self, answer: tuple[Settings, Plan] | Failure) -> None:
        if not isinstance(answer, Failure) and answer[0] is self.draft.settings:
            self.alternatives_found(answer[1])
