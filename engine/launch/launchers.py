"""Which launcher turns a step into a command."""

from __future__ import annotations

from typing import Protocol

from engine.launch import container, local, slurm, ssh
from engine.launch.command import Command, StepRequest


class Launcher(Protocol):
    """Turns a step into a command; starts nothing."""

    def command(self, request: StepRequest) -> Command:
        """The step as a command. Raises SettingsError when the settings do not allow one."""
        ...


_LAUNCHERS: dict[str, Launcher] = {"local": local, "container": container, "slurm": slurm, "ssh": ssh}


def command(request: StepRequest) -> Command:
    """The step as the chosen launcher's command. Raises SettingsError."""
    return _LAUNCHERS[request.settings.launch.launcher].command(request)
