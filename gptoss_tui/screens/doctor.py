"""What this machine has, and what is missing for a run on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from textual import on
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widget import Widget

from engine.findings import Finding, by_severity
from gptoss_tui.bridge import Answer, Failure
from gptoss_tui.finding_rows import finding_parts
from gptoss_tui.screens.base import CockpitScreen
from gptoss_tui.widgets.facts import Fact, Facts
from gptoss_tui.widgets.note import Note
from gptoss_tui.widgets.rule import Rule

if TYPE_CHECKING:
    from engine.machine import Machine


class DoctorScreen(CockpitScreen):
    """Facts above, findings with their cures below."""

    CSS_PATH = "../styles/doctor.tcss"
    PLACE = "doctor"
    HELP_TEXT = "What was found on this machine. Every finding says what it leads to and what mends it."
    BINDINGS = [
        Binding("q", "leave", "Back", id="screen.leave"),
        Binding("r", "again", "Look again", id="doctor.again"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._versions: tuple[Finding, ...] | Failure | None = None

    def compose_body(self) -> Iterable[Widget]:
        with VerticalScroll(id="body"):
            yield Facts(id="machine")
            yield Rule("findings", id="findings-title")
            yield Note(id="findings")

    def on_mount(self) -> None:
        self.query_one("#body").focus()
        self.cockpit.machine_found.subscribe(self, lambda _: self._draw())
        self.call_after_refresh(lambda: self.ask("versions", self.cockpit.services.versions))
        self.call_after_refresh(self._draw)

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    @on(Answer)
    def answered(self, answer: Answer) -> None:
        self._versions = answer.value
        self._draw()

    def action_again(self) -> None:
        self.cockpit.look_for_machine()
        self.ask("versions", self.cockpit.services.versions)

    def _draw(self) -> None:
        machine = self.cockpit.machine
        note = self.query_one("#findings", Note)
        if isinstance(machine, Failure):
            note.show(f"✗ {machine.message}", machine.hint, style="bad")
            return
        if machine is None or self._versions is None:
            note.show_parts([("looking …", "muted")])
            return
        self.show_status(((machine.headline, "text"),))
        self.query_one("#machine", Facts).show("machine", _facts(machine))
        parts = [] if not isinstance(self._versions, Failure) else [(f"✗ {self._versions.message}", "bad")]
        versions = () if isinstance(self._versions, Failure) else self._versions
        findings = by_severity([*machine.findings, *versions])
        parts += finding_parts(findings)
        note.show_parts(parts or [("✓ nothing is missing", "good")])
        self.query_one("#findings-title", Rule).show(right=((f"{len(findings)}", "muted"),))


def _facts(machine: Machine) -> list[Fact]:
    facts = [
        Fact("host", machine.host),
        Fact("processor", machine.cpu_model or "–"),
        Fact("cores", str(machine.cpu_cores)),
        Fact("memory", f"{machine.ram_gib:.1f}", "GiB"),
        Fact("of it free", f"{machine.ram_free_gib:.1f}", "GiB"),
        Fact("shared memory", f"{machine.shm_gib:.1f}", "GiB"),
        Fact("GPUs", machine.gpu_names),
    ]
    if machine.driver_version:
        facts.append(Fact("driver", machine.driver_version))
    facts += [Fact(f"disk for {disk.purpose}", f"{disk.free_gib:,.0f}", "GiB") for disk in machine.disks]
    facts += [Fact("container engine", one.name) for one in machine.containers]
    return facts
