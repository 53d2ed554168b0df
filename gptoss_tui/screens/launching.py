"""From settings to a running run, with the person's yes in between; shared by Home and Setup."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from engine.findings import Finding, Severity
from gptoss_tui import bridge
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.finding_rows import forbids, worst_text
from gptoss_tui.screens.base import CockpitScreen

if TYPE_CHECKING:
    from engine.machine import Machine
    from engine.plan.plan import Plan
    from engine.presets import Preset
    from engine.run.directory import RunDirectory
    from engine.settings import Settings
    from gptoss_tui.screens.confirm import Choice

_TEXT_CELLS = 62
_GOES_ON = "It goes on by itself, whatever happens to this terminal."
_SOMEWHERE_ELSE = (
    "{} describes a machine that is not this one. Export scripts, in the review of a set-up, writes what starts the "
    "run there."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Settings that a person may start, with what planning and checking found."""

    settings: Settings
    title: str
    name: str = ""
    """Of the run; empty means one is made up."""
    preset: Preset | None = None
    plan: Plan | None = None
    findings: tuple[Finding, ...] = field(default=())
    notes: tuple[str, ...] = ()
    """What else to say before the start."""
    is_rehearsal: bool = False
    """A try of other settings: they stay to be launched."""


class Launching(CockpitScreen):
    """Plans and checks, asks, starts, and shows the run."""

    _offer: Offer | None = None

    def offer(self, offer: Offer) -> None:
        """Show what the settings would do on this machine, and start them when the person agrees."""
        machine = self.cockpit.machine
        if machine is None or isinstance(machine, Failure):
            text = machine.message if isinstance(machine, Failure) else "This machine is still being looked at."
            self.notify(text, title="Not yet")
            return
        self._offer = offer
        self.ask("offer", partial(self._plan_and_check, offer, machine))

    def take_launch_answer(self, answer: Answer) -> bool:
        """Go on with an offer; False when the answer is about something else."""
        if answer.name == "offer":
            self._show_offer(answer.value)
        elif answer.name == "launch":
            self._launched(answer.value)
        else:
            return False
        return True

    def open_monitor(self, run: RunDirectory) -> None:
        """Show the monitor of a run."""
        from gptoss_tui.screens.monitor import MonitorScreen

        self.app.push_screen(MonitorScreen(run))

    def _plan_and_check(self, offer: Offer, machine: Machine) -> Offer:
        services = self.cockpit.services
        plan = services.plan(offer.settings, machine)
        findings = services.check(offer.settings, plan, machine)
        return replace(offer, plan=plan, findings=findings)

    def _show_offer(self, answer: Offer | Failure) -> None:
        from gptoss_tui.screens.confirm import Choice, ConfirmScreen

        offer = answer if isinstance(answer, Offer) else self._offer
        assert offer is not None
        self._offer = offer
        change = (Choice("change", "Change it first"),) if offer.preset is not None else ()
        if isinstance(answer, Failure):
            text = f"It cannot run here: {answer.message}\n\n{answer.hint}".strip()
            question = ConfirmScreen(offer.title, text, (*change, Choice("no", "Close")))
        else:
            described = self.cockpit.services.described
            title, text, choices = offer.title, offer_text(offer), _choices(offer, change)
            if described:
                title, choices = "Nothing can start here", (*change, Choice("no", "Close"))
                text = f"{_SOMEWHERE_ELSE.format(described)}\n\n{text}"
            elif forbids(offer.findings):
                title = "It cannot start like this"
            question = ConfirmScreen(title, text, choices)
        self.app.push_screen(question, self._offer_decided)

    def _offer_decided(self, choice: str | None) -> None:
        offer = self._offer
        if offer is None:
            return
        if choice == "start" and offer.plan is not None:
            self.notify("Starting …", timeout=3)
            start = self.cockpit.services.start
            self.ask("launch", partial(start, offer.settings, offer.plan, offer.name))
        elif choice == "change":
            from gptoss_tui.screens.setup import SetupScreen

            self.app.push_screen(SetupScreen(preset=offer.preset))

    def _launched(self, run: RunDirectory | Failure) -> None:
        from gptoss_tui.screens.confirm import Choice, ConfirmScreen

        if isinstance(run, Failure):
            text = f"{run.message}\n\n{run.hint}".strip()
            self.app.push_screen(ConfirmScreen("The run did not start", text, (Choice("no", "Close"),)))
        else:
            if self._offer is not None and not self._offer.is_rehearsal:
                bridge.attempt(self.forget_draft)
            self.open_monitor(run)

    def forget_draft(self) -> None:
        """What to do with a kept draft once its run has started."""


def offer_text(offer: Offer) -> str:
    """An offer in words."""
    plan = offer.plan
    assert plan is not None
    where = "the CPU" if plan.device == "cpu" else "GPUs"
    ranks = f"{plan.world_size} rank" + ("s" if plan.world_size != 1 else "")
    lines = [f"On {where} with {ranks}, layout {plan.layout}.", ""]
    # First what may keep one from it: a small terminal shows no more.
    if troubles := worst_text(offer.findings):
        lines += [troubles, ""]
    for number, step in enumerate(plan.steps, start=1):
        text = f"{number}. {step.name:<8} {step.why}"
        lines += textwrap.wrap(text, _TEXT_CELLS, subsequent_indent=" " * 12)
    lines += ["", *(line for note in offer.notes for line in textwrap.wrap(note, _TEXT_CELLS))] if offer.notes else []
    return "\n".join([*lines, "", _GOES_ON])


def _choices(offer: Offer, change: tuple[Choice, ...]) -> tuple[Choice, ...]:
    from gptoss_tui.screens.confirm import Choice

    if forbids(offer.findings):
        return (*change, Choice("no", "Close"))
    if any(finding.severity is Severity.ERROR for finding in offer.findings):
        return (Choice("no", "Not now"), *change, Choice("start", "Start anyway", is_harmful=True))
    return (Choice("start", "Start"), *change, Choice("no", "Not now"))
